"""Print the command for a threestudio configuration."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from distill.from_threestudio.convert import convert
from distill.usage import Parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the command on standard output, and comments on standard error."""
    parser = Parser(prog="python -m distill.from_threestudio", description=__doc__)
    parser.add_argument("config", type=Path, help="a YAML of threestudio")
    given = parser.parse_args(arguments)
    try:
        command, notes = convert(given.config)
    except ValueError as error:
        print(f"distill: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    print(command)
    sys.stdout.flush()
    for note in notes:
        print(f"# {note}", file=sys.stderr)


if __name__ == "__main__":
    main()
