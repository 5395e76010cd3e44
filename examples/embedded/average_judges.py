"""Average the weights of a judge and of one that continues its training: the average is often better than both.

It is a model soup of two (Wortsman et al. 2022, arXiv:2203.05482):

    python examples/embedded/average_judges.py ~/fourth/weights ~/fifth/weights --output ~/judge/weights
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from distill.embedded.judge import Judge, load_judge, save_judge


def averaged(first: Judge, second: Judge) -> Judge:
    """A judge with the means of the weights, and of the batch norms' statistics, of two.

    Raises:
        ValueError: they have other words or another shape.
    """
    shapes = [(one.vocabulary, one.channels, one.depths) for one in (first, second)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "the judges have other words or another shape; give one that continues the other's training"
        )
    made, others = Judge(*shapes[0]), second.state_dict()
    made.load_state_dict(
        {
            name: (value + others[name]) / 2 if value.is_floating_point() else value
            for name, value in first.state_dict().items()
        }
    )
    return made.eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("first", type=Path, help="folder of a judge")
    parser.add_argument("second", type=Path, help="folder of one that continues its training")
    parser.add_argument("--output", type=Path, required=True, help="folder of the averaged judge")
    options = parser.parse_args()
    if options.output.resolve() in (options.first.resolve(), options.second.resolve()):
        parser.error(f"--output would overwrite {options.output}; give another folder")
    save_judge(averaged(load_judge(folder=options.first), load_judge(folder=options.second)), options.output)
    print(f"averaged judge in {options.output}; evaluate_judge.py measures it")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
