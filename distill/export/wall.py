"""The wall of a generator's prompts: a sheet of them at each preview, and their fronts over training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill.cameras import turntable
from distill.contracts import View
from distill.export.thumbnail import sheets
from distill.files.atomic import write_atomic

if TYPE_CHECKING:
    from PIL.Image import Image

#: Pixels of a render's edge, of the space for a prompt, and of the line with the steps.
SIZE, LABEL, BAR = 64, 190, 20
#: Previews on the wall, at most, a column each; the first, the last, and some between.
COLUMNS = 12


def write_wall(folder: Path, step: int, views: Sequence[View], prompts: Sequence[tuple[str, bool]]) -> None:
    """Write ``previews/step-NNNNNN.png``, four sides of each prompt, and ``wall.png``, the fronts over all previews so far.

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
    # A run that is resumed has sheets of steps that it does again.
    done = [sheet for sheet in sheets(folder) if sheet[0] <= step]
    _save(_wall([done[i] for i in spread(len(done), COLUMNS)], prompts), folder / "wall.png")


def spread(count: int, most: int) -> list[int]:
    """Places of at most ``most`` (2 or more) of ``count`` things, evenly chosen, the first and the last among them."""
    kept = min(count, most)
    return [round(i * (count - 1) / (kept - 1)) for i in range(kept)] if kept > 1 else [*range(kept)]


def _wall(shown: Sequence[tuple[int, Path]], prompts: Sequence[tuple[str, bool]]) -> Image:
    """A row for each prompt: its front at each step shown, then the other sides at the last."""
    from PIL import Image, ImageDraw

    columns = len(shown) + 3
    wall = Image.new("RGB", (LABEL + columns * SIZE, BAR + len(prompts) * SIZE), "white")
    pen = ImageDraw.Draw(wall)
    for index, (prompt, learnt) in enumerate(prompts):
        text = prompt if len(prompt) <= 30 else prompt[:27] + "..."
        pen.text((6, BAR + index * SIZE + SIZE // 2 - 6), text, "black" if learnt else "#b03010")
    for column, (step, path) in enumerate(shown):
        with Image.open(path) as sheet:
            last = column == len(shown) - 1
            part = sheet.crop((0, 0, (4 if last else 1) * SIZE, sheet.height))
            wall.paste(part, (LABEL + column * SIZE, BAR))
        pen.text((LABEL + column * SIZE + 4, 4), str(step), "#555555")
    pen.text((LABEL + len(shown) * SIZE + 4, 4), "left, back, right", "#555555")
    return wall


def _save(picture: Any, path: Path) -> None:
    import io

    data = io.BytesIO()
    picture.save(data, "PNG")
    write_atomic(path, data.getvalue())
