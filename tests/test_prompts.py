"""Prompts by view: thresholds, prompts of their own, no prompt, and staying away from other views (Perp-Neg)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.cameras import Cameras, orbit
from distill.conditions.perp_neg import Curves, shares
from distill.conditions.prompts import conditioner, four_views, own_prompts, view_words
from distill.contracts import Embedding, Step
from distill.guidance.asd import asd
from distill.guidance.csd import csd
from distill.guidance.sds import sds
from distill.guidance.terms import predict
from distill.run.assembly.conditioning import curves
from distill.run.config.compose import compose_config
from distill.run.config.schema import Views


@dataclass
class Listed:
    """Embeds a prompt as its place in the list, and predicts, for each, noise that a test chose."""

    noises: list[Tensor] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    calls: int = 0
    device, name = torch.device("cpu"), "listed"
    num_timesteps = 10
    image_size, views, words = 2, 1, True

    def encode(self, image: Tensor) -> Tensor:
        return image

    def embed(self, prompts: list[str]) -> Embedding:
        self.prompts += [text for text in prompts if text not in self.prompts]
        eye = torch.eye(8, dtype=torch.float64)
        return {"told": eye[[self.prompts.index(text) for text in prompts]]}

    def alpha(self, t: Tensor) -> Tensor:
        return torch.full((len(t), 1, 1, 1), 0.8, dtype=torch.float64)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.full((len(t), 1, 1, 1), 0.6, dtype=torch.float64)

    def predict_noise(
        self, x_t: Tensor, t: Tensor, cond: Embedding, cameras: Cameras | None = None
    ) -> Tensor:
        self.calls += 1
        table = torch.stack(self.noises)
        return torch.einsum("bp,pchw->bchw", cond["told"], table[: cond["told"].shape[1]])


def listed() -> Any:
    """A fake that has only what ``conditioner`` uses of a prior."""
    return Listed()


def cameras(*angles: tuple[float, float]) -> Cameras:
    azimuth, elevation = torch.tensor(angles).T
    return orbit(azimuth, elevation, 3.0, 40.0)


def test_thresholds_decide_the_word() -> None:
    assert [four_views(a, 0) for a in (0, 44, 46, -90, 134, 136, 180, 350)] == [
        "front view", "front view", "side view", "side view", "side view", "back view", "back view", "front view",
    ]  # fmt: skip
    assert four_views(0, 61) == "overhead view"
    assert four_views(60, 61, front_deg=70, overhead_deg=80) == "front view"


def test_a_batch_mixes_views_and_prompts_of_their_own(tmp_path: Path) -> None:
    prior = listed()
    file = tmp_path / "views.yaml"
    file.write_text("back: a cat's tail\nside: from file\n")
    config = compose_config(["prompt=a cat", "prior=x", f"views.file={file}", "views.side=a cat passing"])
    own = own_prompts(config.views)
    assert own == {"back": "a cat's tail", "side": "a cat passing"}  # what is said beats what is in the file
    views = view_words("auto", "embedded", own=own, front_deg=30)
    condition = conditioner(prior, "a cat", "ugly", views, unconditional="null")
    found = condition(cameras((0, 0), (40, 0), (170, 10), (0, 70)), Step())
    names = [prior.prompts[i] for i in found.text["told"].argmax(1)]
    assert names == ["a cat, front view", "a cat passing", "a cat's tail", "a cat, overhead view"]
    assert {prior.prompts[i] for i in found.prompts["negative"]["told"].argmax(1)} == {"ugly"}
    assert {prior.prompts[i] for i in found.prompts["plain"]["told"].argmax(1)} == {"a cat"}
    assert not found.uncond["told"].any()
    other: Any = Listed()
    auto = conditioner(other, "a cat")(cameras((0, 0)), Step())
    assert auto.uncond["told"].any()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("top: a cat", "any of front, side, back, overhead"),
        ("- a", "any of front"),
        (": :", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_wrong_file_of_views_is_said(tmp_path: Path, content: str | None, said: str) -> None:
    file = tmp_path / "views.yaml"
    if content is not None:
        file.write_text(content)
    options: Any = compose_config(["prompt=a cat", "prior=x", f"views.file={file}"]).views
    with pytest.raises(ValueError, match=said) as caught:
        own_prompts(options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["views.front_deg=0"], r"views.front_deg must be a number in \(0, 90\], got 0"),
        (["views.overhead_deg=91"], r"views.overhead_deg must be a number in \(0, 90\], got 91"),
    ],
)
def test_impossible_thresholds_are_said(options: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        compose_config(["prompt=a cat", *options])


def test_other_ways_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="need view_words=four, got 'sixteen'"):
        view_words("sixteen", "x", own={"back": "a"})
    with pytest.raises(ValueError, match="unconditional must be auto or null, got 'none'"):
        conditioner(listed(), "a", unconditional="none")
    with pytest.raises(ValueError, match="perp_neg needs view_words=four"):
        conditioner(listed(), "a", away=Curves())
    assert own_prompts(compose_config(["prompt=a"]).views) == {}
    assert Views().front is None


def test_weights_by_hand() -> None:
    """-(a exp(-b r) + c): nothing but the other view is pushed away at a view, and both halves meet at the side."""
    front, between, side = (shares(azimuth, Curves()) for azimuth in (0.0, -45.0, 90.0))
    assert (front.views, front.share, front.away) == ((0, 1), 1.0, (0, 1))
    assert front.weights == pytest.approx((2.426 - 4 * math.exp(-0.5), 2.426 - 4))
    assert between.share == pytest.approx(0.5)
    assert between.weights == pytest.approx([2.426 - 4 * math.exp(-0.25)] * 2)
    assert (side.views, side.share, side.away) == ((1, 2), 1.0, (1, 0))
    assert side.weights == pytest.approx((0.606 - math.exp(-0.5), -0.967 - math.exp(-0.5)))
    nearly = shares(89.999, Curves())
    told, ahead = (
        dict(zip(side.away, side.weights, strict=True)),
        dict(zip(nearly.away, nearly.weights, strict=True)),
    )
    assert told == pytest.approx(ahead, abs=2e-3)
    back = shares(180.0, Curves())
    assert (back.views, back.share) == ((1, 2), 0.0)


ENABLED = ("prompt=x", "view_words=four", "perp_neg.enabled=true")


@pytest.mark.parametrize("azimuth", [0.0, 9.0, 18.5, 45.0, -71.0, 80.0, 91.0, 107.0, -110.0, 150.0, 180.0])
def test_the_authors_curves_have_their_cut_offs(azimuth: float) -> None:
    """2 exp(-2 r) and 2 exp(-10 (1 - r)) before the side, exp(-10 r) and 2 behind it; 0 within 18 degrees of the view itself."""
    config = compose_config([*ENABLED, "perp_neg.curves=authors", "perp_neg.strength=0.5"])
    found = shares(azimuth, curves(config))
    turned = abs(azimuth)
    if turned < 90:
        front = 0.0 if turned < 18 else 2 * math.exp(-2 * (1 - turned / 90))
        side = 0.0 if turned > 72 else 2 * math.exp(-10 * turned / 90)
        expected = {0: -0.5 * front, 1: -0.5 * side}
    else:
        side = 0.0 if turned < 108 else math.exp(-10 * (2 - turned / 90))
        expected = {1: -0.5 * side, 0: -1.0}
    assert dict(zip(found.away, found.weights, strict=True)) == pytest.approx(expected)


def test_curves_from_the_command_line() -> None:
    config = compose_config([*ENABLED, "perp_neg.strength=3", "perp_neg.side_from_back=[1,2,3]"])
    assert curves(config) == Curves(side_from_back=(1.0, 2.0, 3.0), strength=3.0)
    plain, triple = (shares(130.0, Curves(strength=strength)).weights for strength in (1.0, 3.0))
    assert triple == pytest.approx([3 * weight for weight in plain])
    with pytest.raises(ValueError, match="must be a list of 3 to 4"):
        compose_config(["prompt=x", "perp_neg.side_from_back=[1,2]"])
    assert compose_config(["prompt=x", "experiment=scaledreamer"]).perp_neg.strength == 0.5
    assert compose_config(["prompt=x", "experiment=csd"]).perp_neg.strength == 3.0


def noise(seed: int) -> Tensor:
    return torch.randn(1, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_prediction_by_hand_in_a_batch_that_mixes_views() -> None:
    base: Any = Listed(noises=[noise(i) for i in range(8)])
    # Prompts in the order of embedding: front, side, back, overhead, "", "a cat".
    condition = conditioner(base, "a cat", views=view_words("four", "x"), away=Curves())
    found = condition(cameras((30, 0), (120, 0), (0, 80)), Step())
    x_t, t = torch.zeros(3, 1, 2, 2, dtype=torch.float64), torch.tensor([1, 2, 3])
    base.calls = 0
    predicted, empty = predict(base, x_t, t, found, "text", "uncond")
    assert base.calls == 1
    e = base.noises
    for row, (near, other, r, away, weights) in enumerate(
        [
            (0, 1, 2 / 3, (0, 1), [-(4 * math.exp(-0.5 * r) - 2.426) for r in (2 / 3, 1 / 3)]),
            (1, 2, 2 / 3, (1, 0), [0.606 - math.exp(-1 / 3), -0.967 - math.exp(-1 / 3)]),
        ]
    ):
        toward = r * e[near] + (1 - r) * e[other] - e[4]
        expected = e[4] + toward
        for view, weight in zip(away, weights, strict=True):
            part = e[view] - e[4]
            expected = expected + weight * (part - (part * toward).sum() / (toward * toward).sum() * toward)
        torch.testing.assert_close(predicted[row], expected, rtol=1e-5, atol=1e-6)
        # What is added is perpendicular to where the prompt leads.
        added = predicted[row] - e[4] - toward
        assert abs((added * toward).sum().item()) < 1e-6
    torch.testing.assert_close(predicted[2], e[3])
    torch.testing.assert_close(empty, torch.stack([e[4]] * 3))


def test_a_loss_takes_it_for_the_prompts_prediction() -> None:
    base: Any = Listed(noises=[noise(i) for i in range(8)])
    condition = conditioner(base, "a cat", views=view_words("four", "x"), away=Curves())
    cond = condition(cameras((20, 0)), Step())
    x, t, added = torch.zeros(1, 1, 2, 2, dtype=torch.float64), torch.tensor([4]), noise(9)[None]
    given = sds(base, x, cond, t, added, scale=7.0, weighting="uniform")
    # Noised with alpha 0.8 and sigma 0.6; what is predicted does not depend on it.
    (prompt,) = predict(base, x, t, cond, "text")
    assert not torch.allclose(prompt, base.predict_noise(x, t, cond.text))
    torch.testing.assert_close(given, base.noises[4] + 7 * (prompt - base.noises[4]) - added)


def perpendicular(part: Tensor, to: Tensor) -> Tensor:
    return part - (part * to).sum() / (to * to).sum() * to


def test_scaledreamers_and_csds_arithmetic_with_perp_neg_by_hand() -> None:
    """ASD: (e_pos + sum w perp) s + e_origin - e(x_t', t') bare; CSD: e_pos + sum w perp; both measured from the negative prompt."""
    base: Any = Listed(noises=[noise(i) for i in range(8)])
    condition = conditioner(base, "a cat", "ugly", view_words("four", "x"), away=Curves())
    cond = condition(cameras((30, 0)), Step())
    e, r = base.noises, 2 / 3
    negative = e[base.prompts.index("ugly")]
    text = r * e[0] + (1 - r) * e[1]
    toward = text - negative
    weights = [-(4 * math.exp(-0.5 * share) - 2.426) for share in (r, 1 - r)]
    pushed = sum(w * perpendicular(e[view] - negative, toward) for view, w in enumerate(weights))
    x, t, added = torch.zeros(1, 1, 2, 2, dtype=torch.float64), torch.tensor([4]), noise(9)[None]
    options: dict[str, Any] = {"weighting": "uniform"}
    found = asd(base, x, cond, t, added, scale=7.5, random_shift=False, t_min=0.0, eta=0.5, **options)
    torch.testing.assert_close(found[0], (toward + pushed) * 7.5 + negative - text, rtol=1e-5, atol=1e-6)
    found = csd(base, x, cond, t, added, negative=-1.0, empty=0.0, **options)
    torch.testing.assert_close(found[0], toward + pushed, rtol=1e-5, atol=1e-6)
