"""Parts of one's own: what is registered is chosen by name, and what a loss does wrong is said as such."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from test_run import OPTIONS

import distill
from distill import guidance, loop, renderers
from distill.guidance.terms import WEIGHTINGS
from distill.priors import exact
from distill.priors.sampling import sample
from distill.renderers.image import ImageScene
from distill.run.assembly.initial import tell_source
from distill.run.config.compose import compose_config
from distill.samplers import cameras, timesteps

MEAN = exact.Components(torch.zeros(1, 3, 4, 4), torch.zeros(1), torch.ones(1))


#: What registers each kind of part, and where it is kept.
DOORS: dict[str, Any] = {
    "loss": guidance,
    "scene": renderers,
    "timestep law": timesteps,
    "camera sampler": cameras,
}


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for door in DOORS.values():
        monkeypatch.setattr(door, "_registered", {})


def wrong_shape(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, scale: float = 1.0) -> Any:
    return x[:, :1]


def no_gradient(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, scale: float = 1.0) -> Any:
    return None


def whole_numbers(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, scale: float = 1.0) -> Any:
    return x.long()


def complex_numbers(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, scale: float = 1.0) -> Any:
    return 1j * x


def breaks(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, scale: float = 1.0) -> Any:
    raise KeyError("what it needs")


def never_finite(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, scale: float = 1.0) -> Any:
    return x * float("nan")


def Quiet(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, scale: float = 1.0) -> Any:  # noqa: N802
    return scale * x


def required(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, scale: float) -> Any:
    return scale * x


def mapped(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, d: dict[str, Any] = {}) -> Any:  # noqa: B006
    return x


def sds(prior: Any, x: Any, cond: Any, t: Any, noise: Any) -> Any:
    return x


def tp_sds(prior: Any, x: Any, cond: Any, t: Any, noise: Any) -> Any:
    return x


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (lambda x: x, "must be a function or a class with a name"),
        (functools.partial(Quiet, scale=2), "must be a function or a class with a name"),
        (3, "must be a function or a class with a name"),
        (required, "the loss required has the option scale without a default"),
        (mapped, "the default of d of the loss mapped must be a number, text"),
        (sds, "the name sds is taken; give your loss another"),
        (tp_sds, "the name tp_sds is taken; give your loss another"),
    ],
)
def test_what_cannot_be_chosen_is_refused_where_it_is_registered(part: Any, said: str) -> None:
    """There it costs one loss; later it would cost every run of the process."""
    with pytest.raises(ValueError, match=said) as caught:
        guidance.register(part)
    assert "\n" not in str(caught.value)
    assert compose_config(["prompt=a red mug"]).guidance.scale == 2


def hash_grid(*, seed: int = 0) -> Any: ...


def uniform(prior: Any, *, t_max: float = 1.0) -> Any: ...


def ranges(*, distance: float = 3.0) -> Any: ...


def seedless(*, count: int = 3) -> Any: ...


def drawing(progress: float, batch: int, generator: Any) -> Any:
    """What a law returns, registered in place of the law."""


def otherwise(model: Any, *, t_max: float = 1.0) -> Any:
    """It is given the prior by name."""


class SetUpFirst:
    def __init__(self, prior: Any, generator: Any, priors: Any, *, scale: float = 1.0) -> None: ...


@pytest.mark.parametrize("kind", DOORS)
def test_every_door_refuses_what_no_configuration_can_name(kind: str) -> None:
    def inner(
        prior: Any = 0, x: Any = 0, cond: Any = 0, t: Any = 0, noise: Any = 0, *, seed: int = 0
    ) -> Any: ...

    register = DOORS[kind].register
    with pytest.raises(ValueError, match=f"a {kind} must be a function or a class with a name"):
        register(lambda: None)
    with pytest.raises(
        ValueError, match=f"the {kind} inner is defined inside a function, .* top level of a file"
    ):
        register(inner)
    assert DOORS[kind]._registered == {}


@pytest.mark.parametrize(
    ("kind", "part", "said"),
    [
        ("scene", hash_grid, "the name hash_grid is taken; give your scene another"),
        ("timestep law", uniform, "the name uniform is taken; give your timestep law another"),
        ("camera sampler", ranges, "the name ranges is taken; give your camera sampler another"),
        ("scene", seedless, r"a scene must take \(seed\) or .*; seedless takes \(\)"),
        ("timestep law", drawing, r"law must take \(prior\), .*; drawing takes \(progress, batch, generator\)"),
        ("timestep law", otherwise, r"law must take \(prior\), .*; otherwise takes \(model\)"),
        ("camera sampler", drawing, r"sampler must take \(\), .*; drawing takes \(progress, batch, generator\)"),
        ("loss", drawing, r"loss must take \(prior, x, cond, t, noise\), .*; drawing takes \(progress, batch, generator\)"),
        ("loss", SetUpFirst, r"takes \(prior, generator, priors\); below @guidance.register, mark one .*made_for_prior"),
    ],
)  # fmt: skip
def test_what_cannot_be_called_or_has_a_name_that_is_taken_is_refused(
    kind: str, part: Any, said: str
) -> None:
    before = list(DOORS[kind].available())
    with pytest.raises(ValueError, match=said) as caught:
        DOORS[kind].register(part)
    assert "\n" not in str(caught.value)
    assert list(DOORS[kind].available()) == before


@pytest.mark.parametrize("kind", DOORS)
def test_the_librarys_own_parts_are_what_a_door_lets_in(kind: str) -> None:
    """Under another name."""
    for part in DOORS[kind].available().values():
        name, part.__name__ = part.__name__, f"own_{part.__name__.lower()}"
        try:
            assert DOORS[kind].register(part) is part
            assert DOORS[kind].available()[part.__name__] is part
        finally:
            part.__name__ = name


def test_a_weighting_is_checked_where_it_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    def fantasia3d(alpha: Any, sigma: Any) -> Any: ...

    def of_t(t: Any) -> Any: ...

    def to_a_power(alpha: Any, sigma: Any, *, power: float) -> Any: ...

    before = dict(WEIGHTINGS)
    wrong: tuple[tuple[Any, str], ...] = (
        (lambda alpha, sigma: sigma, "a weighting must be a function or a class with a name"),
        (fantasia3d, "the name fantasia3d is taken; give your weighting another"),
        (of_t, r"^a weighting must take \(alpha, sigma\); of_t takes \(t\)$"),
        (to_a_power, r"^a weighting must take \(alpha, sigma\); to_a_power takes \(alpha, sigma, power\)$"),
    )
    for part, said in wrong:
        with pytest.raises(ValueError, match=said):
            guidance.register_weighting(part)
    assert before == WEIGHTINGS


def test_a_name_in_capitals_is_told_how_it_is_chosen() -> None:
    guidance.register(Quiet)
    with pytest.raises(ValueError, match=r"unknown guidance 'Quiet'; did you mean 'quiet'\?"):
        compose_config(["prompt=a red mug", "guidance=Quiet"])


@pytest.mark.parametrize(
    ("loss", "error", "said"),
    [
        (wrong_shape, ValueError, r"the loss must return dL/dx, a tensor of the shape of x, \[\d+, 48, .* got \[\d+, 1, "),
        (no_gradient, ValueError, "the loss must return dL/dx, .* got NoneType"),
        (whole_numbers, ValueError, r"the loss must return dL/dx, .* of floating-point numbers, got \[.*\] of torch.int64"),
        (complex_numbers, ValueError, r"of floating-point numbers, got \[.*\] of torch.complex64"),
        (breaks, KeyError, "what it needs"),
        (never_finite, loop.Diverged, "was not finite in 3 steps in a row, .* check the loss, the weighting, the scene or the cameras if they are your own"),
    ],
)  # fmt: skip
def test_what_a_loss_does_wrong_is_said_and_noted(loss: Callable[..., Any], error: Any, said: str) -> None:
    """A run none of whose steps counted ends as one that failed, however few there were."""
    guidance.register(loss)
    with pytest.raises(error, match=said):
        distill.generate(
            "a red mug", guidance=loss.__name__, output_dir="run", **{**OPTIONS, "iterations": 3}
        )
    manifest = json.loads(Path("run/manifest.json").read_text())
    assert manifest["state"] in ("failed", "diverged") and manifest["why"]


class Drawn(ImageScene):
    def render(self, *given: Any, **options: Any) -> Any:
        return super().render(*given, **options).rgb


class Constant(ImageScene):
    def render(self, *given: Any, **options: Any) -> Any:
        return super().render(*given, **options).detached()


class Listed(ImageScene):
    def parameter_groups(self) -> Any:
        return [self.image]


class Bare(ImageScene):
    def parameter_groups(self) -> Any:
        return {"image": [self.image]}


class Untrained(ImageScene):
    def parameter_groups(self) -> Any:
        return {}


@pytest.mark.parametrize(
    ("scene", "said"),
    [
        (Drawn, r"must render a distill\.contracts\.Render, got Tensor"),
        (Constant, "pictures have no gradient; render them from its parameters"),
        (Listed, r"must be a dictionary of distill\.contracts\.Group, got '\[Parameter"),
        (Bare, r"must be a dictionary of distill\.contracts\.Group, got \"\{'image'"),
        (Untrained, "parameter_groups of a scene have no parameters"),
    ],
)
def test_what_a_scene_does_wrong_is_said(scene: Callable[..., Any], said: str) -> None:
    renderers.register(scene)
    options = {name: value for name, value in OPTIONS.items() if not name.startswith("scene.")}
    with pytest.raises(ValueError, match=said):
        distill.generate("a red mug", scene=scene.__name__.lower(), output_dir="run", **options)


def test_a_comparison_goes_on_past_a_loss_that_breaks(tmp_path: Path) -> None:
    for loss in (breaks, Quiet):
        guidance.register(loss)
    methods = {"breaks": {"guidance": "breaks"}, "quiet": {"guidance": "quiet"}}
    options: Any = {**OPTIONS, "iterations": 2, "measure_every": 1}
    for name in ("export.enabled", "log.tensorboard"):
        options.pop(name, None)
    report = distill.compare(methods, ["a red car"], [0], output_dir=tmp_path / "out", **options)
    cells = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("cell.json")]
    errors = {cell["method"]: cell["error"] for cell in cells}
    assert errors["breaks"] == "KeyError: 'what it needs'" and errors["quiet"] is None
    assert report.is_file()


@pytest.mark.parametrize("prompts", ["a red mug", []])
def test_one_text_is_no_list_of_prompts(prompts: Any) -> None:
    prior = distill.load_prior("embedded")
    with pytest.raises(ValueError, match="prompts must be a list of one text or more, got"):
        prior.embed(prompts)


@pytest.mark.parametrize(
    "image", [torch.zeros(1, 4, 64, 64), torch.zeros(3, 64, 64), torch.zeros(1, 3, 64, 64, dtype=torch.uint8)]
)
def test_what_is_no_picture_is_not_encoded(image: torch.Tensor) -> None:
    prior = distill.load_prior("embedded")
    with pytest.raises(ValueError, match=r"pictures must be of shape \[batch, 3, height, width\]"):
        prior.encode(image)


def test_steps_that_were_left_out_are_told(caplog: pytest.LogCaptureFixture) -> None:
    state: Any = SimpleNamespace(step=40, skipped=38)
    with caplog.at_level("WARNING"):
        loop.tell_skipped(state)
        loop.tell_skipped(SimpleNamespace(step=40, skipped=4))  # type: ignore[arg-type]
    assert caplog.messages == ["38 of 40 steps were skipped, because their gradients were not finite"]


def test_a_run_that_is_at_its_end_already_is_left_as_it_is() -> None:
    state: Any = SimpleNamespace(step=3, skipped=3)
    job: Any = SimpleNamespace(state=state, settings=SimpleNamespace(iterations=3, max_bad_steps=20))
    assert loop.train(job) is state


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: exact.dirac({"a": torch.zeros(3, 4, 8)}), "means must be square pictures"),
        (
            lambda: exact.dirac({"a": torch.zeros(3, 4, 4), "b": torch.zeros(3, 8, 8)}),
            "pictures have one shape",
        ),
        (
            lambda: exact.Components(torch.zeros(2, 3, 4, 4), torch.zeros(2), torch.ones(3)),
            "as many stds and weights",
        ),
        (
            lambda: exact.Components(torch.zeros(1, 3, 4, 4), -torch.ones(1), torch.ones(1)),
            "stds must be at least 0",
        ),
        (
            lambda: exact.ExactPrior({"": MEAN}, prediction="noise"),
            "prediction must be one of epsilon, v_prediction",
        ),
    ],
)
def test_an_exact_prior_of_nonsense_is_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_what_comes_before_the_last_comma_stands_for_all_that_share_it() -> None:
    """Also where a caption says no more than that."""
    captions = ["a mug, from behind", "a mug, front", "a mug", "a cup"]
    prior = exact.empirical(torch.rand(4, 3, 4, 4), captions)
    counts = {text: len(mixture.means) for text, mixture in prior.prompts.items()}
    assert counts == {"": 4, "a mug": 3, "a mug, from behind": 1, "a mug, front": 1, "a cup": 1}


@pytest.mark.parametrize(
    ("options", "said"), [({"clip": -1.0}, "clip must be above 0"), ({"prompts": "a"}, "a list of one text")]
)
def test_samples_of_nonsense_are_refused(options: dict[str, Any], said: str) -> None:
    prior = exact.dirac({"": torch.zeros(3, 4, 4), "a": torch.zeros(3, 4, 4)})
    given: dict[str, Any] = {"prompts": ["a"], "generator": torch.Generator(), "steps": 2, **options}
    with pytest.raises(ValueError, match=said):
        sample(prior, given.pop("prompts"), **given)


@pytest.mark.parametrize(("source", "told"), [("a yellow duck", False), ("a red mug", True)])
def test_an_edit_says_where_it_begins_with_something_else(
    source: str, told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = compose_config(["prompt=a yellow duck"])
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    OmegaConf.save(first, tmp_path / "run" / "config.yaml")
    words = ["prompt=a blue duck", "init=run", "guidance=dds", f"source_prompt={source}"]
    with caplog.at_level("WARNING"):
        tell_source(compose_config(words), tmp_path / "run")
    said = [
        message for message in caplog.messages if "shows 'a yellow duck', and source_prompt is" in message
    ]
    assert bool(said) is told
