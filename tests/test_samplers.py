"""Timestep samplers and schedules."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distill.contracts import Condition, Step
from distill.priors.exact import cosine, dirac, scaled_linear
from distill.samplers import cameras, timesteps
from distill.samplers.schedules import Ramp, scheduled, scheduled_sampler
from distill.samplers.timesteps import (
    annealed,
    dreamtime,
    dreamtime_v1,
    listed,
    normal_cells,
    square_root,
    truncated_normal,
    uniform,
)

PRIOR = dirac({"": torch.zeros(1, 1, 1)})


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


def descent(sampler: Any, n: int, first: int = 1) -> list[int]:
    g = torch.Generator()
    return [int(sampler(i / n, 1, g)) for i in range(first, n + 1)]


def test_dreamtime_on_stable_diffusion_matches_the_published_schedule() -> None:
    """Computed elsewhere for N = 10,000 on [20, 980]: start, last but one, end, and at 10, 50, 90% of progress."""
    first, second = (descent(make(PRIOR), 10_000) for make in (dreamtime_v1, dreamtime))
    assert [first[i] for i in (0, 999, 4999, 8999, 9998, 9999)] == [980, 914, 673, 429, 151, 20]
    assert [second[i] for i in (0, 999, 4999, 8999, 9998, 9999)] == [975, 720, 556, 394, 101, 20]


@pytest.mark.parametrize("make", [dreamtime, dreamtime_v1])
@pytest.mark.parametrize("abar", [scaled_linear(), cosine()], ids=["scaled_linear", "cosine"])
def test_dreamtime_never_increases_and_spends_iterations_as_its_weights_say(
    make: Any, abar: torch.Tensor
) -> None:
    """Oracle 18: the share of iterations at or above t is the weights' normalised tail, to within 1/N."""
    n = 5_000
    drawn = torch.tensor(descent(make(dirac({"": torch.zeros(1, 1, 1)}, abar)), n, first=0))
    assert (drawn.diff() <= 0).all()
    t = torch.arange(20, 981).double()
    if make is dreamtime:
        weight = ((1 - abar[20:981]) / abar[20:981]).sqrt() * torch.exp(-((t - 500) ** 2) / (2 * 125**2))
    else:
        above, below = (
            torch.exp(-((t - 800) ** 2) / (2 * 300**2)),
            torch.exp(-((t - 500) ** 2) / (2 * 100**2)),
        )
        weight = torch.where(t > 800, above, torch.where(t < 500, below, 1.0))
    share = weight / weight.sum()
    counted = torch.bincount(drawn, minlength=981)[20:981] / n
    # Each timestep owns the stretch of progress nearest to its tail: half of its own weight, half of the next's.
    owned = (share + torch.cat([share[:1] * 0, share[:-1]])) / 2
    inner = slice(1, -1)
    assert (counted - owned)[inner].abs().max() <= 1.0 / n + 1e-12


def test_uniform_weights_descend_linearly() -> None:
    """Oracle 19: |t(i) - (t_max + 1 - (i / N) n)| <= 1, n = t_max - t_min + 1."""
    drawn = descent(timesteps._descending(PRIOR, torch.ones(1000), 0.02, 0.98), 3_000)
    for i, t in enumerate(drawn, start=1):
        assert abs(t - (981 - i / 3_000 * 961)) <= 1


def test_square_root_by_hand() -> None:
    draw = square_root(PRIOR, t_min=0.0, t_max=0.9)
    assert [int(draw(p, 1, torch.Generator())) for p in (0.0, 0.25, 0.49, 0.81)] == [900, 450, 270, 90]


def test_truncated_normal_has_the_moments_of_one() -> None:
    t = (
        truncated_normal(PRIOR, mean=0.3, std=0.2)(0.0, 100_000, torch.Generator().manual_seed(0)).double()
        / 1000
    )
    assert t.min() >= 0
    assert t.max() <= 0.999
    # Normal(0.3, 0.2) on [0, 1]: mean and standard deviation by the textbook formulas.
    normal = torch.distributions.Normal(0.0, 1.0)
    low, high = torch.tensor(-1.5), torch.tensor(3.5)
    z = normal.cdf(high) - normal.cdf(low)
    density_low, density_high = normal.log_prob(low).exp(), normal.log_prob(high).exp()
    ratio = (density_low - density_high) / z
    mean = 0.3 + 0.2 * ratio - 0.0005  # rounded down to thousandths
    std = 0.2 * (1 + (low * density_low - high * density_high) / z - ratio**2).sqrt()
    assert t.mean().item() == pytest.approx(mean.item(), abs=2e-3)
    assert t.std().item() == pytest.approx(std.item(), abs=2e-3)
    far = truncated_normal(PRIOR, mean=30.0, std=0.01, t_max=0.5)(0.0, 100, torch.Generator())
    assert far.min() == 500
    with pytest.raises(ValueError, match="std must be positive, got 0"):
        truncated_normal(PRIOR, std=0)


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [
        (1.0, 0.2, (839.923259, 120.560, 1.5055e-8, 1.7638e-4, 3.98941e-3, 0.012419, 0.682690)),
        (0.5, 0.2, (499.5, 190.920, 8.930e-5, 2.0198e-3, 8.930e-5, 0.5, 0.06136)),
        (0.0, 0.2, (159.076741, 120.560, 3.98941e-3, 1.7419e-4, 1.5055e-8, 0.98758, 6.277e-5)),
        (1.0, 0.5, (638.105, 250.657, 2.267e-4, 1.015e-3, 1.6718e-3, 0.28477, 0.32567)),
    ],
)
def test_truncated_normal_has_the_exact_probabilities(
    mean: float, std: float, expected: tuple[float, ...]
) -> None:
    """Mean, standard deviation, p(0), p(500), p(999), P(t < 500) and P(t >= 800), by the normal's integral."""
    k = torch.arange(1000, dtype=torch.float64)
    p = normal_cells(k / 1000, 1 / 1000, mean, std)
    p = p / p.sum()
    centre = (p * k).sum()
    found = (centre, (p * (k - centre) ** 2).sum().sqrt(), p[0], p[500], p[999], p[:500].sum(), p[800:].sum())
    for one, other in zip(found, expected, strict=True):
        assert one.item() == pytest.approx(other, rel=1.5e-3 if other < 1e-4 else 1e-4)
    mirrored = normal_cells(k / 1000, 1 / 1000, 1 - mean, std)
    torch.testing.assert_close(mirrored.flip(0) / mirrored.sum(), p, rtol=1e-9, atol=1e-15)


def test_truncated_normal_draws_what_it_says() -> None:
    """Chi-square of two million draws in a hundred cells: 99 degrees of freedom, mean 99, deviation 14."""
    t = truncated_normal(PRIOR, mean=1.0, std=0.2)(0.0, 2_000_000, torch.Generator().manual_seed(0))
    p = normal_cells(torch.arange(1000, dtype=torch.float64) / 1000, 1 / 1000, 1.0, 0.2)
    expected = 2_000_000 * (p / p.sum()).unflatten(0, (100, 10)).sum(1)
    counts = torch.bincount(t // 10, minlength=100)
    likely = expected > 5
    statistic = ((counts - expected) ** 2 / expected)[likely].sum()
    assert statistic < likely.sum() + 4 * (2 * likely.sum()) ** 0.5


def test_a_list_is_gone_through_in_equal_shares() -> None:
    draw = listed(PRIOR, timesteps=[0.9, 0.5, 0.2])
    assert [int(draw(p, 1, torch.Generator())) for p in (0, 0.33, 0.34, 0.66, 0.67, 0.99)] == [
        900,
        900,
        500,
        500,
        200,
        200,
    ]
    with pytest.raises(ValueError, match="at least one entry"):
        listed(PRIOR, timesteps=[])
    with pytest.raises(ValueError, match=r"got 1\.2"):
        listed(PRIOR, timesteps=[1.2])


def test_equal_fractions_step() -> None:
    draw = annealed(PRIOR, t_max_end=0.5, from_fraction=0.4, to_fraction=0.4)
    highest = [int(draw(p, 20_000, torch.Generator().manual_seed(0)).max()) for p in (0.0, 0.39, 0.4, 1.0)]
    assert highest == [980, 980, 500, 500]


def test_every_sampler_gives_integers_inside_the_prior_for_the_whole_batch() -> None:
    for name in timesteps.__all__:
        draw = getattr(timesteps, name)(PRIOR)
        for progress in (0.0, 0.37, 0.999):
            t = draw(progress, 5, torch.Generator().manual_seed(0))
            assert t.shape == (5,), name
            assert t.dtype == torch.int64, name
            assert 0 <= t.min() <= t.max() <= 999, name


def test_scheduled_options_follow_progress() -> None:
    seen = []

    def loss(*_: Any, scale: float, weighting: str) -> None:
        seen.append((scale, weighting))

    bound: Any = scheduled(loss, scale=Ramp(100.0, 10.0, 0.0, 0.5), weighting="uniform")
    for progress in (0.0, 0.25, 0.9):
        bound(None, None, Condition({"text": {}, "uncond": {}}, step=Step(progress=progress)), None, None)
    assert seen == [(100.0, "uniform"), (55.0, "uniform"), (10.0, "uniform")]
    draw = scheduled_sampler(uniform, prior=PRIOR, t_max=Ramp(0.98, 0.5))
    assert int(draw(0.5, 50_000, torch.Generator().manual_seed(0)).max()) == 740


@pytest.mark.parametrize("options", [{"width": 0.0}, {"centre": 50.0}, {"width": float("nan")}])
def test_dreamtime_without_weight_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="dreamtime's weights vanish between t_min and t_max"):
        dreamtime(PRIOR, **options)


def test_a_moving_sampler_is_checked_over_the_whole_of_training() -> None:
    with pytest.raises(ValueError, match=r"0 <= t_min <= t_max <= 1 throughout"):
        scheduled_sampler(uniform, prior=PRIOR, t_min=0.02, t_max=Ramp(0.98, 0.01, 0.2, 0.9))


@pytest.mark.parametrize("rising", [{"t_max": 0.4, "t_max_end": 0.5}, {"t_min": 0.1, "t_min_end": 0.2}])
def test_annealed_timesteps_only_fall(rising: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"annealed timesteps only fall, .* lower t_min_end or t_max_end"):
        timesteps.annealed(dirac({"": torch.zeros(1, 1, 1)}), **rising)


def test_the_ends_of_a_camera_range_may_move() -> None:
    sample = scheduled_sampler(
        cameras.ranges, elevation_deg=(Ramp(0.0, 40.0), Ramp(10.0, 50.0)), distance=(Ramp(2.0, 4.0), 4.0)
    )
    for progress, low, near in ((0.0, 0.0, 2.0), (0.5, 20.0, 3.0), (1.0, 40.0, 4.0)):
        seen = sample(progress, 2000, torch.Generator().manual_seed(0))
        assert low <= seen.elevation_deg.min() < low + 0.1
        assert low + 9.9 < seen.elevation_deg.max() <= low + 10
        assert near <= seen.distance.min() < near + 0.1
        assert seen.distance.max() <= 4.0


@pytest.mark.parametrize("count", [1, 3, 7, 100, 1000])
def test_each_entry_of_a_list_has_an_equal_share_of_the_steps(count: int) -> None:
    """With as many steps as entries, each is used once: step i is at i / n, whose product with n may round below i."""
    draw = listed(PRIOR, timesteps=[index / count for index in range(count)])
    drawn = [int(draw(index / count, 1, torch.Generator())) for index in range(count)]
    assert drawn == sorted(set(drawn)) and len(drawn) == count


def test_a_range_that_is_empty_just_before_a_jump_is_told_at_once() -> None:
    # The lower end falls from 0.8 to 0.1 at half-time, when the upper one has come down to 0.7.
    with pytest.raises(ValueError, match="t_min <= t_max"):
        scheduled_sampler(uniform, prior=PRIOR, t_min=Ramp(0.8, 0.1, 0.5, 0.5), t_max=Ramp(0.9, 0.5))
