"""Sample the shading of training pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from distill.samplers.schedules import Ramp


def by_turns(shares: Mapping[str, Ramp]) -> Callable[[float, torch.Generator], str]:
    """Draw the shading of the next pictures: each kind with its probability, else ``albedo``.

    Args:
        shares: of some of ``distill.renderers.choices.SHADINGS``, over training; together at most 1.

    Returns:
        A sampler ``(progress, generator) -> shading``, which draws one number where a share is above 0, and none elsewhere.

    Source: Poole et al. 2022, arXiv:2209.14988, App. A.2.
    """

    def draw(progress: float, generator: torch.Generator) -> str:
        now = {kind: share(progress) for kind, share in shares.items()}
        if not any(now.values()):
            return "albedo"
        drawn = float(torch.rand(1, generator=generator))
        for kind, share in now.items():
            drawn -= share
            if drawn < 0:
                return kind
        return "albedo"

    return draw
