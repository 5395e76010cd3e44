"""Scenes and priors of one's own are looked at before a run trains with them, and a function becomes a prior."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_registered import DOORS
from test_run import OPTIONS
from torch import nn

import distill
from distill import loop, renderers
from distill.contracts import Prior
from distill.lab.comparison.given import prior_code, prior_name
from distill.lab.comparison.report import options_of
from distill.parts.made import check_made, check_own_prior, lacking
from distill.priors import exact
from distill.priors.exact import scaled_linear
from distill.priors.wrapped import wrap
from distill.renderers.image import ImageScene
from distill.run.assembly.assemble import assemble
from distill.run.config.compose import compose_config


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for door in DOORS.values():
        monkeypatch.setattr(door, "_registered", {})


class Own:
    """A sound prior of one's own, from which each wrong one differs in one member."""

    name, shape, image_size, latent, words, views = "own", (3, 8, 8), 8, False, True, 1
    num_timesteps, trainable, has_control, device = 10, None, False, torch.device("cpu")
    calls = 0

    def embed(self, prompts: list[str]) -> Any:
        return {"prompt": torch.zeros(len(prompts))}

    def encode(self, image: Any) -> Any:
        return torch.nn.functional.interpolate(image, (8, 8))

    def decode(self, x: Any) -> Any:
        return x

    def show(self, pictures: Any) -> Any: ...

    def alpha(self, t: Any) -> Any:
        return torch.linspace(0.9, 0.1, 10)[t].view(-1, 1, 1, 1)

    def sigma(self, t: Any) -> Any:
        return (1 - self.alpha(t) ** 2).sqrt()

    def predict_noise(self, x_t: Any, t: Any, cond: Any, cameras: Any = None) -> Any:
        self.calls += 1
        return torch.randn_like(x_t)

    def describe(self) -> Any:
        return {}


def of(**members: Any) -> Any:
    return type("Own", (Own,), members)()


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"predict_noise": lambda self, x_t, t, cond, cameras=None: x_t[:, :1]}, r"predict_noise of the prior own must return noise of the shape of x_t, \[2, 3, 8, 8\], got \[2, 1, 8, 8\]"),
        ({"predict_noise": lambda self, x_t, t, cond, cameras=None: x_t[:1]}, r"got \[1, 3, 8, 8\]"),
        ({"predict_noise": lambda self, x_t, t, cond: x_t}, "predict_noise of the prior own fails for pictures of its shape, .* TypeError"),
        ({"predict_noise": lambda self, x_t, t, cond, cameras=None: None}, "got NoneType"),
        ({"alpha": lambda self, t: torch.ones(len(t))}, r"alpha of the prior own must be finite numbers of shape \[batch, 1, 1, 1\], got \[2\]"),
        ({"sigma": lambda self, t: 0.5}, r"sigma of the prior own must be .*, got float"),
        ({"alpha": lambda self, t: torch.full((len(t), 1, 1, 1), float("nan"))}, "alpha of the prior own must be finite"),
        ({"num_timesteps": 20}, "alpha of the prior own fails at the timesteps 0 and 19, of num_timesteps=20: index 19 is out of bounds"),
        ({"embed": lambda self, prompts: torch.zeros(len(prompts), 4)}, r"embed of the prior own must return a dictionary of tensors .*, got \[2, 4\]"),
        ({"encode": lambda self, image: image[..., :4, :4]}, r"encode of the prior own must return its shape for each picture, \[2, 3, 8, 8\], got \[2, 3, 4, 4\]"),
        ({"embed": lambda self, prompts: {"a": torch.zeros(1, 4)}}, r"got \{'a': '\[1, 4\] of torch.float32'\} for 2 prompts"),
    ],
)  # fmt: skip
def test_a_prior_that_is_not_as_it_must_be(members: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        distill.generate("a red mug", prior=of(**members), **{**OPTIONS, "render.batch": 2})
    assert "\n" not in str(caught.value)


def test_a_comparison_looks_at_its_prior_too(tmp_path: Path) -> None:
    prior = of(predict_noise=lambda self, x_t, t, cond, cameras=None: x_t[:, :1])
    methods = {"sds": {"guidance": "sds"}}
    with pytest.raises(ValueError, match=r"predict_noise of the prior own must return noise of the shape"):
        distill.compare(methods, ["a red car"], [0], output_dir=tmp_path / "out", prior=prior, iterations=1)


def test_a_sound_prior_is_asked_once_and_leaves_random_numbers_as_they_are() -> None:
    prior, before = of(), torch.get_rng_state()
    for _ in range(2):
        check_own_prior(prior, "a red mug", 4)
    assert prior.calls == 1 and torch.equal(before, torch.get_rng_state())


def in_float64(self: Any, x_t: Any, t: Any, cond: Any, cameras: Any = None) -> Any:
    assert x_t.dtype == torch.float64
    return x_t


def batch_of_four(self: Any, x_t: Any, t: Any, cond: Any, cameras: Any = None) -> Any:
    assert len(x_t) == 4 == len(cond["prompt"])
    return x_t


def four_views(self: Any, x_t: Any, t: Any, cond: Any, cameras: Any = None) -> Any:
    assert cond["prompt"].tolist() == [0.0] * 4 and len(cameras) == 4
    return x_t


@pytest.mark.parametrize(
    "members",
    [
        {"predict_noise": in_float64, "encode": lambda self, image: Own.encode(self, image).double()},
        {"predict_noise": batch_of_four},
        {"predict_noise": four_views, "views": 4},
    ],
)
def test_a_prior_is_asked_as_a_run_asks_it(members: dict[str, Any]) -> None:
    """In the precision of what it encodes, for as many pictures as a step has, with a row of its embedding for each."""
    check_own_prior(of(**members), "a red mug", 4)


def test_a_prior_that_cannot_be_remembered_is_looked_at_each_time() -> None:
    made = type("Bare", (), {"__slots__": ("calls",), **{n: v for n, v in vars(Own).items() if n not in ("calls", "__dict__", "__weakref__")}})()  # fmt: skip
    made.calls = 0
    for _ in range(2):
        check_own_prior(made, "a red mug", 4)
    assert made.calls == 2


def test_a_wrapped_function_is_looked_at_too() -> None:
    prior = wrap(
        lambda x, t, cond: x,
        (3, 8, 8),
        torch.linspace(0.9, 0.1, 10),
        embed=lambda texts: {"a": torch.zeros(1, 4)},
    )
    with pytest.raises(ValueError, match=r"embed of the prior wrapped must return .* for 2 prompts"):
        check_own_prior(prior, "a red mug", 4)


def test_what_a_prior_lacks_is_listed() -> None:
    assert lacking(of()) == []

    class T4b:
        def predict_noise(self) -> None: ...

    said = r"got T4b, which lacks name, device, .*, embed, .*describe; distill\.priors\.wrapped\.wrap makes a prior of a function"
    with pytest.raises(ValueError, match=said):
        distill.generate("a red mug", prior=T4b())
    with pytest.raises(ValueError, match=said):
        prior_name(T4b(), ["a red mug"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"got int$"):
        distill.generate("a red mug", prior=3)


class Plain:
    features = frozenset[str]()

    def __init__(self, *, seed: int = 0) -> None: ...


class Half(nn.Module):
    features = frozenset[str]()

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()

    def render(self, cameras: Any, height: int, width: int) -> Any: ...


class Narrow(ImageScene):
    def render(self, cameras: Any, height: int, width: int, *, generator: Any = None) -> Any: ...  # type: ignore[override]


class Hollow(ImageScene):
    features = frozenset({"volume"})


class Misspelt(ImageScene):
    features = frozenset({"volumes"})


@pytest.mark.parametrize(
    ("scene", "said"),
    [
        (Plain, r"a scene must be a torch\.nn\.Module with its parameters, got Plain"),
        (Half, r"the scene Half lacks parameter_groups, update, field, assets of distill\.contracts\.Scene"),
        (Narrow, "the render of the scene Narrow must take .* keywords generator, normals, penalties: got an unexpected"),
        (Hollow, r"the scene Hollow says that it fills space .*, and its field\(\) returns None"),
        (Misspelt, "the scene Misspelt has the unknown feature 'volumes'; did you mean 'volume'\\? there are sides, "),
    ],
)  # fmt: skip
def test_a_scene_that_is_not_as_it_must_be(scene: Any, said: str) -> None:
    renderers.register(scene)
    with pytest.raises(ValueError, match=said):
        assemble(
            compose_config(["prompt=a red mug", f"scene={scene.__name__.lower()}"]),
            distill.load_prior("embedded"),
        )


@pytest.mark.parametrize("scene", ["hash_grid", "image", "sdf"])
def test_the_librarys_scenes_are_let_in(scene: str) -> None:
    made = renderers.available()[scene](seed=0)
    assert check_made(made) is made


def test_a_function_becomes_a_prior_like_the_closed_form() -> None:
    """Its predictions, its space and its schedule are those of the exact prior whose formula the function has."""
    abar = scaled_linear()
    true = exact.gaussian({"": torch.zeros(3, 8, 8), "a cube": torch.full((3, 8, 8), 0.5)}, std=0.5)

    def predict(x_t: torch.Tensor, t: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        means = torch.tensor([0.5 if prompt == "a cube" else 0.0 for prompt in prompts])[:, None, None, None]
        level = abar[t][:, None, None, None].to(x_t)
        return (1 - level).sqrt() * (x_t - level.sqrt() * means) / (level * 0.25 + 1 - level)

    made = wrap(predict, (3, 8, 8), abar, signed=False)
    assert isinstance(made, Prior)
    x, t = torch.rand(2, 3, 8, 8), torch.tensor([100, 900])
    ours, theirs = (prior.predict_noise(x, t, prior.embed(["a cube", ""])) for prior in (made, true))
    torch.testing.assert_close(ours, theirs.to(ours), rtol=1e-4, atol=1e-5)
    picture = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(made.decode(made.encode(picture)), picture)
    assert prior_code(made) == prior_code(made) != prior_code(wrap(predict, (3, 8, 8), abar))
    latents = wrap(predict, (4, 2, 2), abar, encode=lambda image: image.mean((2, 3))[:, :, None, None], decode=lambda x: x, image_size=16)  # fmt: skip
    assert latents.latent and latents.encode(picture).shape == (1, 3, 1, 1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"shape": (4, 8, 8)}, "with 3 channels where there is no encode, got"),
        ({"shape": (3, 8, 4)}, r"shape must be \(channels, size, size\)"),
        ({"alphas_cumprod": torch.tensor([0.9, 1.1])}, r"alphas_cumprod must be levels in \(0, 1\]"),
        ({"prediction": "noise"}, "prediction must be one of epsilon, "),
        ({"encode": torch.relu}, "encode and decode belong together"),
    ],
)
def test_what_cannot_be_wrapped_is_said(given: dict[str, Any], said: str) -> None:
    whole: Any = {"shape": (3, 8, 8), "alphas_cumprod": torch.tensor([0.9, 0.1]), **given}
    with pytest.raises(ValueError, match=said):
        wrap(lambda x_t, t, prompts: x_t, **whole)


def test_a_run_trains_with_a_function() -> None:
    prior = wrap(lambda x_t, t, prompts: 0.1 * x_t, (3, 16, 16), scaled_linear())
    words = ["prompt=a red mug", "scene=image", "render.size=16", "iterations=2", "view_words=none"]
    state = loop.train(assemble(compose_config(words), prior))
    assert state.step == 2 and state.skipped == 0


def test_a_report_states_the_options_of_each_method() -> None:
    records: Any = [
        {"method": "a", "options": {"guidance": "sds", "guidance.scale": 4}},
        {"method": "b", "options": {"guidance": "mix", "guidance.terms": [{"loss": "sds"}]}},
    ]
    assert options_of(records) == {
        "names": ["guidance", "guidance.scale", "guidance.terms"],
        "rows": [("a", ["sds", "4", ""]), ("b", ["mix", "", '[{"loss": "sds"}]'])],
    }
