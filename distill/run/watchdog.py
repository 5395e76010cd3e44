"""End a run early that has clearly collapsed: nothing to see, a full cube, one colour, or values that are not finite."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from typing import NamedTuple

import torch

from distill.contracts import Render

#: Steps between two looks: each waits for the device once.
EVERY = 10
#: Steps for which a run must have been the same kind of wrong, and the fraction of a long run.
PATIENCE, SHARE = 100, 0.05
#: Mean opacity of a step's pictures below which nothing is there, and above which the scene's whole cube is full. A cube
#: that is full covers 0.92 to 1 of a picture from the default cameras, whose corners look past it.
EMPTY, FULL = 0.001, 0.9
#: Largest difference within a picture, of any channel, of what is one colour; and of the opacity of what has no outline.
COLOUR, OUTLINE = 2 / 255, 0.5


class Collapsed(RuntimeError):
    """The run has collapsed, and more steps would not help."""


class Sight(NamedTuple):
    """What one look at a step's pictures finds.

    Attributes:
        step: steps done.
        opacity: mean over all pixels of all pictures.
        outline: largest less smallest opacity of all pixels.
        contrast: of the picture and the channel where it is largest, the largest less the smallest value.
    """

    step: int
    opacity: float
    outline: float
    contrast: float


def look(step: int, picture: Render) -> Sight:
    """Measure a step's pictures, with one wait for the device.

    Args:
        step: steps done.
        picture: ``rgb [batch, height, width, 3]`` and ``opacity [batch, height, width, 1]``.
    """
    rgb, opacity = picture.rgb.detach().float(), picture.opacity.detach().float()
    contrast = (rgb.amax((1, 2)) - rgb.amin((1, 2))).amax()
    numbers = torch.stack([opacity.mean(), opacity.amax() - opacity.amin(), contrast]).tolist()
    return Sight(step, *numbers)


def kind_of(sight: Sight, volume: bool = True) -> str:
    """Say what is wrong with one look: ``not finite``, ``empty``, ``full``, ``one colour``, or nothing.

    Args:
        sight: of a step.
        volume: whether the scene fills space; the opacity of others says nothing.
    """
    if not all(map(math.isfinite, sight)):
        return "not finite"
    if volume and sight.opacity < EMPTY:
        return "empty"
    if volume and sight.opacity > FULL:
        return "full"
    # A white thing on white is one colour, too, and has an outline.
    if sight.contrast < COLOUR and (sight.outline < OUTLINE or not volume):
        return "one colour"
    return ""


def verdict(seen: Sequence[Sight], steps: int, volume: bool = True) -> str:
    """Say in what way a run has collapsed, if each look over enough steps found the same.

    Args:
        seen: looks at a run, in the order of the steps.
        steps: that the same must have been wrong for.
        volume: see ``kind_of``.

    Returns:
        A word of ``kind_of``; empty if the run is healthy, or has not been watched for so long.
    """
    if not seen or not (kind := kind_of(seen[-1], volume)):
        return ""
    since = seen[-1].step
    for sight in reversed(seen):
        if kind_of(sight, volume) != kind:
            return ""
        since = sight.step
        if seen[-1].step - since >= steps:
            return kind
    return ""


#: What each kind of collapse looks like, and what often helps.
SAID = {
    "empty": "no pixel shows anything; try another seed=, a lower guidance.scale or penalties.sparsity, or lower learning rates",
    "full": "the object fills its whole cube; try another seed=, a penalty such as penalties.sparsity, or lower learning rates",
    "one colour": "its pictures are of one colour; try another seed=, or lower learning rates",
    "not finite": "its pictures hold values that are not finite; try lower learning rates, or prior_options.dtype=float32",
}


def patience(iterations: int) -> int:
    """Steps for which a run of so many iterations must have been the same kind of wrong."""
    return max(PATIENCE, math.ceil(SHARE * iterations))


def watch(iterations: int, volume: bool) -> Callable[[int, Render], None]:
    """Return what is called after each step of a scene, with the steps that the run has done and their pictures.

    Of several scenes, each has one of its own, which counts the steps that train this scene.

    Args:
        iterations: of the run.
        volume: see ``kind_of``.

    Raises:
        Collapsed: by what is returned; says how, since when, and what to try.
    """
    steps = patience(iterations)
    seen: deque[Sight] = deque(maxlen=steps // EVERY + 2)
    own = count(1)

    def after(step: int, picture: Render) -> None:
        if (mine := next(own)) % EVERY:
            return
        seen.append(look(mine, picture))
        if kind := verdict(seen, steps, volume):
            raise Collapsed(
                f"collapsed at step {step} of {iterations}: {kind} for {steps} steps: {SAID[kind]}; watchdog=false continues"
            )

    return after
