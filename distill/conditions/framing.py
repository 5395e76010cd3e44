"""Find where in a picture's frame a novel-view model expects the object."""

from __future__ import annotations

from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor, nn

from distill.conditions.cutout import Frame, over_white
from distill.priors.novel_view.pipeline import NovelViewPipeline

#: How far a frame is moved at most, and the steps of the two searches, fractions of its side.
REACH, COARSE, FINE = 0.1, 0.02, 0.005


def settled(pipeline: NovelViewPipeline, image: Image.Image, frame: Frame, fill: float) -> Frame:
    """Move a frame so that the model's draft of the picture's own view is most like the picture.

    A model that has only seen objects turn about the middle of the picture misjudges one that is a few pixels away from
    it, and the middle of a silhouette is not the middle of the object: a mug has its axis beside it. The draft of the view
    that is given can only be right where the code knows the object, so its squared error says how well a frame suits the
    model. Only encoder and code are evaluated, some hundreds of times.

    Args:
        pipeline: of a model with a code that draws drafts, which has not seen objects beside the axis; with any other, the
            frame is returned as it is.
        image: RGBA.
        frame: to begin from, of ``distill.conditions.cutout.frame_of``.
        fill: share of the frame that the object takes; it is not moved out of the picture.
    """
    turn = pipeline.model.turn
    if turn is None or turn.draft is None or pipeline.fourth != "distance" or pipeline.offset > 0:
        return frame
    reach = min(REACH, (1 - fill) / 2)
    for width, step in ((reach, COARSE), (COARSE, FINE)):
        count = int(width / step + 1e-6)
        moves = [step * number for number in range(-count, count + 1)]
        # Nearest first, so that of equally good frames the one that moves least is taken.
        places = sorted(
            ((x, y) for y in moves for x in moves), key=lambda place: place[0] ** 2 + place[1] ** 2
        )
        frames = [
            replace(frame, left=frame.left + x * frame.side, top=frame.top + y * frame.side)
            for x, y in places
        ]
        errors = draft_errors(pipeline, torch.stack([_rgb(image, one, pipeline.size) for one in frames]))
        frame = frames[int(errors.argmin())]
    return frame


@torch.no_grad()
def draft_errors(pipeline: NovelViewPipeline, rgb: Tensor) -> Tensor:
    """Mean squared error of the draft of each picture's own view, pictures over white ``[n, 3, h, w]`` to ``[n]``."""
    turn = pipeline.model.turn
    assert turn is not None and turn.draft is not None
    errors = []
    for part in rgb.to(pipeline.device).split(64):
        same = part.new_tensor([0.0, 0.0, 1.0, 0.0]).expand(len(part), -1)
        drawn = turn.draft(turn.code(pipeline.encoder(part).maps, same))
        own = nn.functional.interpolate(part * 2 - 1, (turn.draft.size, turn.draft.size), mode="area")
        errors.append((drawn.float() - own).square().mean((1, 2, 3)))
    return torch.cat(errors)


def _rgb(image: Image.Image, frame: Frame, size: int) -> Tensor:
    return over_white(image, frame, size).rgb
