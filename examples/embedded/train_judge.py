"""Train the judge: a contrastive image-text model of the embedded world that is used for evaluation only.

It is trained on every pair of colour and name, of kinds and real objects, including those held out from the prior, with other shapes of the world's
kinds. Blur, shifts, recolouring and noise imitate the renders of an optimised scene. ``--things`` names the pack that
``render_things.py pack`` makes; ``--start`` names an earlier judge's folder, whose weights are its first.

An interrupted run continues when started again:

    python examples/embedded/train_judge.py --work ~/judge --things ~/things/pack --images 900000 --output ~/judge/weights

Two judges are bundled. That of real objects was made by ``--minutes 4.8 --batch 256 --channels 64 128 320 --peak-lr 2e-3`` on a GPU, and trained
further on a CPU, first with more residual layers by ``--start FIRST --depths 2 2 2 --share 0.25 --batch 128 --peak-lr 1.2e-3 --minutes 75``, then
by ``--start SECOND --share 0.2 --batch 128 --peak-lr 1e-3 --minutes 110 --threads 1``, ``--start THIRD --share 0.12 --batch 128 --peak-lr 1e-3
--minutes 82 --threads 2``, ``--start FOURTH --share 0.12 --batch 128 --peak-lr 1e-3 --minutes 86 --threads 1``, from the average of the last two by
``--start AVERAGE --share 0.12 --batch 128 --peak-lr 1e-3 --minutes 75 --threads 1`` and by ``--start SIXTH --share 0.12 --batch 160 --peak-lr 1e-3
--minutes 42 --threads 1``; ``average_judges.py`` averaged the last two again. That of the kinds was made before this script read real objects: 240,000 pictures of the kinds, in batches of 128 with four
pictures of each pair and a peak learning rate of 0.002.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dataset
import torch
from evaluate_judge import accuracy
from judge_pictures import FRESH_SEED, Half, Source, of_pack, of_world, over_white, truth
from torch import Tensor
from tqdm import tqdm

from distill.embedded import things
from distill.embedded.judge import CHANNELS, DEPTHS, Judge, Residual, load_judge, save_judge, vocabulary
from distill.files.atomic import sha256
from distill.priors.dtypes import mixed
from distill.transfer import send

SEED = 10_000_000
#: Scale of a residual layer that an earlier judge did not have: at first, it changes little.
ADDED = 0.05
#: The training state in the work folder.
STATE = "judge.pt"


def plain(pictures: dataset.Pictures, index: Tensor, colour: Tensor) -> Tensor:
    """Chosen renders of the kinds in chosen colours over white, in [0, 1], ``[batch, 3, 64, 64]``."""
    return over_white(pictures.layers[index], pictures.palette[colour])


def contrast(
    judge: Judge, images: Tensor, told: list[str], others: list[str], true: Tensor, open_: Tensor
) -> Tensor:
    """CLIP's symmetric loss where several captions can be right for a picture, each as much as the others.

    Args:
        judge: in training.
        images: in [0, 1], shape ``[batch, 3, 64, 64]``.
        told: a caption of each picture.
        others: further captions, that are mostly wrong for all of them.
        true: which of ``told`` and ``others`` are true of which picture, bool, shape ``[batch, told + others]``.
        open_: of which that is not known, likewise; these count neither way.

    Returns:
        Scalar.
    """
    with mixed(images.device):
        seen = judge.image_features(images)
    # Those with a view are twice as long: read apart, the others need no padding.
    texts = [*told, *others]
    order = sorted(range(len(texts)), key=lambda index: ", " in texts[index])
    few = sum(", " in text for text in texts)
    parts = [order[: len(texts) - few], order[len(texts) - few :]]
    read = torch.cat([judge.text_features([texts[index] for index in part]) for part in parts if part])
    read = read[torch.tensor(order).argsort()]
    logits = judge.log_scale.exp().clamp(max=50) * seen.float() @ read.T
    logits = logits.masked_fill(open_ & ~true, -1e4)
    weight = true.float()
    rows = -(logits.log_softmax(1) * weight).sum(1) / weight.sum(1)
    own, weight = logits[:, : len(told)], weight[:, : len(told)]
    columns = -(own.log_softmax(0) * weight).sum(0) / weight.sum(0)
    return (rows.mean() + columns.mean()) / 2


def save_state(path: Path, state: dict[str, object]) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def triple(values: Sequence[int]) -> tuple[int, int, int]:
    first, second, third = values
    return first, second, third


def shape_of(
    options: argparse.Namespace, earlier: Judge | None
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """The channels and the depths of the judge to train.

    Raises:
        ValueError: it would have fewer residual layers somewhere than the judge of ``--start``.
    """
    channels = earlier.channels if earlier else triple(options.channels or CHANNELS)
    least = earlier.depths if earlier else (0, 0, 0)
    depths = triple(options.depths or (earlier.depths if earlier else DEPTHS))
    if any(one < other for one, other in zip(depths, least, strict=True)):
        raise ValueError(
            f"--depths: expected at least those of --start, {' '.join(map(str, least))}, got {' '.join(map(str, depths))}"
        )
    return channels, depths


def begun_with(options: argparse.Namespace) -> dict[str, str]:
    """Checksums of the pack and of the judge that a training begins with, under the options that name them, and its shape.

    Raises:
        ValueError: a file cannot be read.
    """
    files = {"--things": options.things / things.PICTURES}
    if options.start:
        files["--start"] = options.start / "judge.safetensors"
    shape = {"--depths": options.depths or ([] if options.start else DEPTHS)}
    if not options.start:
        shape["--channels"] = options.channels or CHANNELS
    said = {name: " ".join(map(str, numbers)) for name, numbers in shape.items()}
    try:
        return {name: sha256(path) for name, path in files.items()} | said
    except OSError as error:
        raise ValueError(
            f"{error.filename} cannot be read ({error.strerror}); --things must be a pack's folder, and --start a judge's"
        ) from error


def load_state(options: argparse.Namespace) -> dict[str, Any] | None:
    """The training state in the work folder, or None where training has not begun.

    Raises:
        ValueError: it was begun with another pack or another judge.
    """
    path, given = options.work / STATE, begun_with(options)
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location=options.device, weights_only=True)
    begun = state["begun"]
    for name in ("--things", "--start", "--channels", "--depths"):
        if begun.get(name) != given.get(name):
            raise ValueError(
                f"{path} is of a training that began with another {name}, or without it: give what it began with, or another --work"
            )
    return state


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for pictures and training state")
    parser.add_argument("--things", type=Path, required=True, help="pack of real objects")
    parser.add_argument("--start", type=Path, help="folder of an earlier judge whose weights to begin with")
    parser.add_argument("--share", type=float, default=0.3, help="of the sixteen kinds among the pictures")
    parser.add_argument("--images", type=int, default=400_000, help="pictures to train on, in all")
    parser.add_argument("--minutes", type=float, help="train for so long, in all, and not for --images")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--peak-lr", type=float, default=1.5e-3)
    parser.add_argument(
        "--channels", type=int, nargs=3, help=f"of the image tower's three levels; {' '.join(map(str, CHANNELS))}, or those of --start"
    )  # fmt: skip
    parser.add_argument(
        "--depths", type=int, nargs=3, help=f"residual layers of each level; {' '.join(map(str, DEPTHS))}, or those of --start, to which it can add"
    )  # fmt: skip
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of the CPU; torch's choice without it")
    parser.add_argument("--save-minutes", type=float, default=1)
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of the weights, rewritten at each save"
    )
    options = parser.parse_args()
    if not 0 <= options.share <= 1:
        parser.error(f"--share must be in [0, 1], not {options.share}")
    if options.minutes is not None and not 0 < options.minutes < math.inf:
        parser.error(f"--minutes must be above 0, got {options.minutes:g}")
    if options.channels and options.start:
        parser.error("--start has channels of its own; leave --channels out")
    if options.channels and min(options.channels) < 1:
        parser.error(f"--channels must be at least 1, not {min(options.channels)}")
    if options.depths and min(options.depths) < 0:
        parser.error(f"--depths must be at least 0, not {min(options.depths)}")
    if options.batch < 8 or options.batch % 2:
        parser.error(f"--batch must be an even number from 8, not {options.batch}")
    if options.start and options.start.resolve() == options.output.resolve():
        parser.error(f"--output would overwrite the judge of --start, {options.start}; give another folder")
    return options


def source_of(options: argparse.Namespace) -> tuple[Source, Half]:
    """What training draws from, and true renders of the kinds for the progress line.

    Raises:
        ValueError: the pack cannot be read.
    """
    real = of_pack(options.things)
    dataset.build(options.work / "pictures", shapes_per_kind=24, seed=SEED)
    dataset.build(options.work / "fresh", shapes_per_kind=4, seed=FRESH_SEED)
    g = torch.Generator()
    kinds, fresh = (of_world(dataset.Pictures(options.work / name, g)) for name in ("pictures", "fresh"))
    return Source(kinds, real, options.share, options.device), fresh.to(options.device)


def begin_with(judge: Judge, earlier: Judge) -> None:
    """Take an earlier judge's weights, and those of the words that it knows; further residual layers add little at first."""
    state = {
        name: value
        for name, value in earlier.state_dict().items()
        if name != "embedding.weight" and not name.startswith("image_tower")
    }
    judge.load_state_dict(state, strict=False)
    older = list(earlier.image_tower)
    for layer in judge.image_tower:
        if isinstance(layer, Residual) and not isinstance(older[0], Residual):
            torch.nn.init.constant_(layer.norm.weight, ADDED)
        else:
            layer.load_state_dict(older.pop(0).state_dict())
    with torch.no_grad():
        for word in set(judge.vocabulary) & set(earlier.vocabulary):
            judge.embedding.weight[judge.number[word]] = earlier.embedding.weight[earlier.number[word]]


def step(judge: Judge, source: Source, batch: int, g: torch.Generator) -> Tensor:
    """The loss of a new batch."""
    device = judge.log_scale.device
    images, shown = source.draw(batch, g)
    told, others = source.told(shown, g), source.others(shown, g)
    true, open_ = (send(flags, device) for flags in truth(shown, told.beside(others)))
    images = images.contiguous(memory_format=torch.channels_last)
    return contrast(judge, images, told.captions(g), others.captions(g), true, open_)


def train(
    judge: Judge, source: Source, fresh: Half, options: argparse.Namespace, state: dict[str, Any] | None
) -> None:
    """Train until ``--images`` pictures are seen or ``--minutes`` are over, from a saved state or the start; saves as it goes."""
    begun, g = begun_with(options), torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(judge.parameters(), lr=options.peak_lr, weight_decay=0.02)
    seen, seconds = 0, 0.0
    if state:
        judge.load_state_dict(state["judge"])
        optimiser.load_state_dict(state["optimiser"])
        g.set_state(state["generator"].cpu())
        seen, seconds = state["seen"], state.get("seconds", 0.0)

    def save() -> None:
        save_state(options.work / STATE, {"begun": begun, "judge": judge.state_dict(), "seen": seen, "seconds": seconds,
                                          "optimiser": optimiser.state_dict(), "generator": g.get_state()})  # fmt: skip
        save_judge(judge, options.output)

    progress = tqdm(
        total=None if options.minutes else options.images, initial=seen, unit="img", mininterval=10
    )
    saved, began = time.time(), time.time() - seconds
    while True:
        seconds = time.time() - began
        done = seconds / (60 * options.minutes) if options.minutes else seen / options.images
        if done >= 1:
            break
        loss = step(judge, source, options.batch, g)
        optimiser.zero_grad()
        loss.backward()
        for group in optimiser.param_groups:
            group["lr"] = options.peak_lr * min((done + 1e-3) / 0.05, 0.5 * (1 + math.cos(math.pi * done)))
        optimiser.step()
        seen += options.batch
        # Only where it was printed: to read the loss waits for the GPU.
        if progress.update(options.batch):
            progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if time.time() - saved > 60 * options.save_minutes:
            save()
            right = accuracy(judge, fresh, torch.Generator().manual_seed(1))
            tqdm.write(f"{seen} images, fresh renders of the kinds right among all captions: {right:.2%}")
            saved = time.time()
    save()
    progress.close()


def main() -> None:
    options = parse_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    state = load_state(options)
    source, fresh = source_of(options)
    torch.manual_seed(0)
    earlier = load_judge(folder=options.start) if options.start else None
    judge = Judge(vocabulary(), *shape_of(options, earlier))
    if earlier:
        begin_with(judge, earlier)
    judge = judge.to(options.device)
    judge.image_tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    print(f"judge: {sum(p.numel() for p in judge.parameters()) / 1e6:.2f}M parameters")
    train(judge, source, fresh, options, state)
    clean, worn = (accuracy(judge, fresh, torch.Generator().manual_seed(1), worn) for worn in (False, True))
    print(f"kinds: right on fresh renders {clean:.2%}, on augmented {worn:.2%}; in {options.output}")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
