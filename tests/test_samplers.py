"""Timestep samplers and schedules."""

from __future__ import annotations

import pytest
import torch

from distill.priors.exact import GaussianPrior
from distill.samplers.schedules import Ramp
from distill.samplers.timesteps import annealed, uniform

PRIOR = GaussianPrior({"": torch.zeros(1, 1, 1)})


def test_uniform_covers_its_range_ends_included_evenly() -> None:
    t = uniform(PRIOR, t_min=0.02, t_max=0.98)(0.5, 200_000, torch.Generator().manual_seed(0))
    assert (t.min().item(), t.max().item()) == (20, 980)
    counts = torch.bincount(t, minlength=1000)[20:981].double()
    expected = 200_000 / 961
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    # 960 degrees of freedom: mean 960, standard deviation sqrt(2 * 960) = 43.8.
    assert abs(chi_square - 960) < 5 * 43.8


def test_full_range_stays_inside_the_prior() -> None:
    t = uniform(PRIOR, t_min=0.0, t_max=1.0)(0.0, 20_000, torch.Generator().manual_seed(0))
    assert (t.min().item(), t.max().item()) == (0, 999)


def test_annealed_range_moves_linearly() -> None:
    draw = annealed(PRIOR, t_min=0.5, t_min_end=0.02, t_max=0.98, t_max_end=0.5)
    g = torch.Generator().manual_seed(0)
    for progress, low, high in [(0.0, 500, 980), (0.5, 260, 740), (1.0, 20, 500)]:
        t = draw(progress, 50_000, g)
        assert (t.min().item(), t.max().item()) == (low, high)


def test_same_generator_same_draws() -> None:
    draw = uniform(PRIOR)
    first, second = (draw(0.0, 10, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("options", [{"t_min": 0.9, "t_max": 0.1}, {"t_min": -0.1}, {"t_max": 1.1}])
def test_impossible_ranges_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="0 <= t_min <= t_max <= 1"):
        uniform(PRIOR, **options)


def test_ramp_holds_moves_and_holds() -> None:
    ramp = Ramp(1.0, 3.0, 0.25, 0.75)
    assert [ramp(p) for p in (0, 0.25, 0.5, 0.75, 1)] == [1, 1, 2, 3, 3]
    assert Ramp(5.0)(0.7) == 5.0
    assert Ramp(1.0, 2.0, 0.5, 0.5)(0.6) == 2.0


def test_ramp_refuses_reversed_fractions() -> None:
    with pytest.raises(ValueError, match=r"got 0\.8 and 0\.2"):
        Ramp(0, 1, 0.8, 0.2)
