"""Which noise levels a novel-view training sees: laws of timesteps, one stratified draw for each update."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ("power", "normal", "uniform")


@dataclass(frozen=True)
class Law:
    """A law of timesteps.

    Attributes:
        kind: ``power``, ``normal`` (truncated to [0, 1]) or ``uniform``.
        low: exponent of the power law at first, see ``exponent``.
        high: and at the end.
        until: share of the training after which it rises.
        reach: share of the training after which it stays.
        mean: of the normal, fraction of all timesteps.
        std: of the normal, fraction of all timesteps.
    """

    kind: str = "power"
    low: float = 0.12
    high: float = 0.7
    until: float = 0.4
    reach: float = 0.9
    mean: float = 1.0
    std: float = 0.2

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"a law of timesteps must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if not self.std > 0:
            raise ValueError(f"the normal's std must be positive, got {self.std}")
        if not (min(self.low, self.high) > 0 and 0 <= self.until < self.reach <= 1):
            raise ValueError(
                "the power law needs positive exponents low and high, and 0 <= until < reach <= 1, got "
                f"{self.low}, {self.high}, {self.until} and {self.reach}"
            )

    def draw(self, done: float, count: int, steps: int, generator: torch.Generator) -> Tensor:
        """Draw ``count`` of ``steps`` timesteps, when a share ``done`` of the training is over, on the generator's device.

        One comes from each of ``count`` equally likely parts of the law, in a random order.
        """
        device = generator.device
        u = (
            torch.arange(count, device=device) + torch.rand(count, generator=generator, device=device)
        ) / count
        t = (self.quantile(u, done) * steps).long().clamp(0, steps - 1)
        return t[torch.randperm(count, generator=generator, device=device)]

    def quantile(self, u: Tensor, done: float = 0.0) -> Tensor:
        r"""The time in [0, 1] under which a share ``u`` lies.

        .. math:: u^p, \qquad m + s \Phi^{-1}(\Phi(-m/s) + u (\Phi((1-m)/s) - \Phi(-m/s))), \qquad u

        Source: the normal is Efficient-3DiM's (Jiang et al. 2023, arXiv:2310.03015, Sec. 3.2); the power law is ours.
        """
        if self.kind == "uniform":
            return u
        if self.kind == "power":
            return u ** exponent(done, self.low, self.high, self.until, self.reach)
        low, high = (0.5 * (1 + math.erf((end - self.mean) / self.std / 2**0.5)) for end in (0.0, 1.0))
        # In double precision: far from the mean, the distribution function hardly differs from 0 or 1.
        z = torch.special.ndtri(low + u.double() * (high - low))
        return (self.mean + self.std * z).clamp(0, 1).to(u.dtype)


def exponent(done: float, low: float, high: float, until: float, reach: float) -> float:
    """``p`` of ``t = T u^p``: ``low`` for a share ``until`` of the stage, ``high`` from a share ``reach`` on.

    In between it rises in a straight line. Where a view differs is decided at the noisiest timesteps; grain is left by
    the least noisy ones.
    """
    return low + (high - low) * min(max(done - until, 0.0) / (reach - until), 1.0)
