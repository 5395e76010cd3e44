"""Laws of timesteps: against the published law's own figures, and by hand."""

from __future__ import annotations

import math

import pytest
import torch

from distill.lab.novel_view.levels import Law


def normal_below(t: float, mean: float, std: float) -> float:
    """P(T < t) of the normal truncated to [0, 1], from the error function."""

    def phi(x: float) -> float:
        return 0.5 * math.erfc(-(x - mean) / std / 2**0.5)

    return (phi(t) - phi(0)) / (phi(1) - phi(0))


@pytest.mark.parametrize(("mean", "std"), [(1.0, 0.2), (0.5, 0.2), (0.0, 0.2), (1.0, 0.5)])
def test_the_normals_quantile_undoes_its_distribution(mean: float, std: float) -> None:
    law = Law("normal", mean=mean, std=std)
    times = [0.05, 0.3, 0.5, 0.8, 0.99]
    u = torch.tensor([normal_below(t, mean, std) for t in times], dtype=torch.float64)
    torch.testing.assert_close(law.quantile(u), torch.tensor(times, dtype=torch.float64), atol=1e-6, rtol=0)


def test_the_papers_law_draws_what_it_says() -> None:
    # P(t < 500) = .012419, P(t >= 800) = .682690 and E[t] = 839.923259 of floor(x),
    # x of N(1000, 200^2) truncated to [0, 1000].
    t = Law("normal").draw(0.3, 100_000, 1000, torch.Generator().manual_seed(0))
    assert (t < 500).float().mean().item() == pytest.approx(0.012419, abs=2e-5)
    assert (t >= 800).float().mean().item() == pytest.approx(0.682690, abs=2e-5)
    assert t.double().mean().item() == pytest.approx(839.923259, abs=2e-3)
    assert t.min() >= 0 and t.max() == 999


def test_uniform_timesteps_are_all_drawn_alike() -> None:
    t = Law("uniform").draw(0.0, 5000, 1000, torch.Generator().manual_seed(0))
    assert torch.equal(torch.bincount(t, minlength=1000), torch.full((1000,), 5))


def test_the_power_law_moves_with_the_training() -> None:
    law = Law(low=0.5, high=1.0, until=0.2, reach=0.8)
    u = torch.tensor([0.25])
    assert [law.quantile(u, done).item() for done in (0.0, 0.5, 1.0)] == pytest.approx(
        [0.5, 0.25**0.75, 0.25]
    )


def test_a_law_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of power, normal, uniform, got 'cosine'"):
        Law("cosine")
    with pytest.raises(ValueError, match="must be positive, got 0"):
        Law("normal", std=0)
