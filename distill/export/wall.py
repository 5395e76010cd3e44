"""The wall of a generator's prompts: a sheet of them at each look, and their fronts over training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill.cameras import turntable
from distill.contracts import View
from distill.files.atomic import write_atomic

if TYPE_CHECKING:
    from PIL.Image import Image

#: Pixels of a render's edge, of the space for a prompt, and of the line with the steps.
SIZE, LABEL, BAR = 64, 190, 20
#: Looks on the wall, at most; the first, the last, and some between.
LOOKS = 12


def write_wall(folder: Path, step: int, views: Sequence[View], prompts: Sequence[tuple[str, bool]]) -> None:
    """Write ``previews/step-NNNNNN.png``, four sides of each prompt, and ``wall.png``, the fronts of all looks so far.

    Args:
        folder: of the run.
        step: steps done.
        views: render the prompts.
        prompts: the same prompts, and whether each is learnt; those that are not have their names in another colour.
    """
    from PIL import Image

    previews = folder / "previews"
    previews.mkdir(exist_ok=True)
    rows = [view(turntable(4), SIZE, SIZE).rgb.detach().cpu().clamp(0, 1) for view in views]
    sheet = torch.cat([rgb.movedim(0, 1).flatten(1, 2) for rgb in rows])
    _save(Image.fromarray((sheet * 255).round().byte().numpy()), previews / f"step-{step:06d}.png")
    looks = sorted(previews.glob("step-*.png"))
    looks = [look for look in looks if int(look.stem[5:]) <= step]
    kept = looks[:: math.ceil(len(looks) / LOOKS)]
    kept = kept if kept[-1] == looks[-1] else [*kept, looks[-1]]
    _save(_wall(kept, prompts), folder / "wall.png")


def _wall(looks: Sequence[Path], prompts: Sequence[tuple[str, bool]]) -> Image:
    """A row for each prompt: its front at each look, then the other sides at the last."""
    from PIL import Image, ImageDraw

    columns = len(looks) + 3
    wall = Image.new("RGB", (LABEL + columns * SIZE, BAR + len(prompts) * SIZE), "white")
    pen = ImageDraw.Draw(wall)
    for index, (prompt, learnt) in enumerate(prompts):
        text = prompt if len(prompt) <= 30 else prompt[:27] + "..."
        pen.text((6, BAR + index * SIZE + SIZE // 2 - 6), text, "black" if learnt else "#b03010")
    for column, look in enumerate(looks):
        with Image.open(look) as sheet:
            last = column == len(looks) - 1
            part = sheet.crop((0, 0, (4 if last else 1) * SIZE, sheet.height))
            wall.paste(part, (LABEL + column * SIZE, BAR))
        pen.text((LABEL + column * SIZE + 4, 4), str(int(look.stem[5:])), "#555555")
    pen.text((LABEL + len(looks) * SIZE + 4, 4), "left, back, right", "#555555")
    return wall


def _save(picture: Any, path: Path) -> None:
    import io

    data = io.BytesIO()
    picture.save(data, "PNG")
    write_atomic(path, data.getvalue())
