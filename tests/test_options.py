"""Every option of a run refuses what it may not be, in one line, before anything is loaded."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from omegaconf import OmegaConf

from distill.conditions.choices import OWN_PROMPTS
from distill.domains import Count, Fraction, Length, OneOf, Range, Scheduled, describe, fits
from distill.guidance import register_weighting
from distill.guidance.terms import WEIGHTINGS
from distill.options import check_option, hints_of, options_of
from distill.renderers.choices import SHADINGS
from distill.renderers.hashgrid import BACKENDS
from distill.renderers.image import ImageScene
from distill.renderers.nerf import ACTIVATIONS, HashGridScene
from distill.renderers.nerf import BACKGROUNDS as SCENE_BACKGROUNDS
from distill.renderers.volume import PENALTIES
from distill.run.checks.scene import NEEDS
from distill.run.checks.values import check_values
from distill.run.config.compose import compose_config
from distill.run.config.plugins import plugins
from distill.run.config.schema import PARTS, Config, Turns, Views


def error_of(*words: str) -> str:
    with pytest.raises(ValueError) as caught:
        compose_config(["prompt='a red mug'", *words])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@functools.cache
def composed(*words: str) -> Any:
    # A scene that learns a library has its file of prompts, one that textures a mesh has that, one that begins with a field
    # its run; none is read here.
    asked = "prompts=x" if any(word.startswith("scene=hyper") for word in words) else "prompt='a red mug'"
    beside = {"scene=surface": ["mesh.file=x"], "scene=sdf": ["init=x"], "guidance=nfsd": ["negative_prompt=x"],
              "guidance=dds": ["source_prompt=x"], "guidance=bridge": ["source_prompt=x"]}  # fmt: skip
    given = beside.get(" ".join(words[:1]), [])
    return OmegaConf.to_container(compose_config([asked, *given, *words]))


def refused(words: tuple[str, ...], name: str, value: object) -> str:
    """How a value is refused; without Hydra, which takes a third of a second each time."""
    values = copy.deepcopy(composed(*words))
    *groups, key = name.split(".")
    functools.reduce(dict.__getitem__, groups, values)[key] = value
    with pytest.raises(ValueError) as caught:
        check_values(values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def schema_options(schema: type = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(schema, include_extras=True)
    for item in dataclasses.fields(schema):
        if dataclasses.is_dataclass(hints[item.name]):
            yield from schema_options(hints[item.name], f"{prefix}{item.name}.")
        elif item.name not in PARTS:
            yield f"{prefix}{item.name}", hints[item.name]


def part_options() -> Iterator[tuple[str, str, Any]]:
    """Each option of the choices of a group; where several have the same option with the same rule, that of the first."""
    for group, choices in plugins().items():
        seen: set[tuple[str, str]] = set()
        for name, target in choices.items():
            hints = hints_of(target, rules=True)
            options = [item.name for item in dataclasses.fields(options_of(target))]
            for option in options:
                if not option.startswith("_") and (rule := (option, repr(hints[option]))) not in seen:
                    seen.add(rule)
                    yield f"{group}={name}", f"{group}.{option}", hints[option]


ALL: list[tuple[tuple[str, ...], str, Any]] = [((), name, hint) for name, hint in schema_options()]
ALL += [((word,), name, hint) for word, name, hint in part_options()]


def rules_of(hint: Any) -> list[Any]:
    """Every type and rule inside a type."""
    found = [hint, *getattr(hint, "__metadata__", ())]
    for inner in (*typing.get_args(hint), getattr(hint, "__origin__", None)):
        if (
            inner is not None
            and inner is not hint
            and not isinstance(inner, (str, int, Range, Length, OneOf))
        ):
            found += rules_of(inner)
    return found


def is_number(hint: Any) -> bool:
    inside = rules_of(hint)
    return not is_list(hint) and any(kind in inside for kind in (int, float, Scheduled()))


def is_list(hint: Any) -> bool:
    return any(typing.get_origin(kind) in (tuple, list) for kind in rules_of(hint)) or "Sequence" in str(hint)


NUMBERS = [(words, name, hint) for words, name, hint in ALL if is_number(hint)]
LISTS = [(words, name, hint) for words, name, hint in ALL if is_list(hint)]
CLOSED = [
    (words, name, hint)
    for words, name, hint in ALL
    if any(typing.get_origin(rule) is Literal or isinstance(rule, OneOf) for rule in rules_of(hint))
]


def ids(options: list[tuple[Any, str, Any]]) -> list[str]:
    return [" ".join((*words, name)) for words, name, _ in options]


def test_the_kinds_are_not_empty_and_hold_the_well_known() -> None:
    assert {"iterations", "guidance.scale", "penalties.sparsity", "render.size", "optimiser.eps"} <= {
        n for _, n, _ in NUMBERS
    }
    assert {"optimiser.betas", "perp_neg.front_from_side", "cameras.distance", "scene.progressive_levels",
            "scene.background"} <= {n for _, n, _ in LISTS}  # fmt: skip
    assert {"export.up", "render.shading", "view_words", "unconditional", "reference.background", "prior_options.dtype",
            "guidance.weighting", "guidance.prediction", "scene.density_activation", "scene.backend", "scene.background",
            "scene.init"} <= {n for _, n, _ in CLOSED}  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("words", "name", "hint"), NUMBERS, ids=ids(NUMBERS))
def test_no_number_is_nan_or_infinite(words: tuple[str, ...], name: str, hint: Any, value: float) -> None:
    assert name in refused(words, name, value)


@pytest.mark.parametrize("field", ["start", "end", "from_fraction", "to_step"])
@pytest.mark.parametrize(
    "name", ["guidance.scale", "timesteps.t_max", "penalties.sparsity", "render.size", "cameras.distance"]
)
def test_no_field_of_a_schedule_is_nan(name: str, field: str) -> None:
    value = (
        "{" + ",".join(f"{key}:{item}" for key, item in {"start": 1, "end": 1, field: "nan"}.items()) + "}"
    )
    value = f"[{value},3]" if name == "cameras.distance" else value
    assert name in error_of(f"{name}={value}")


#: Lists that are too short or too long, hold something else than numbers, or are none.
WRONG_LISTS = ("[]", "[0.5]", "[0.5,0.5,0.5,0.5]", "[nan,nan]", "[nan,nan,nan]", "[a,b]", "[a,b,c]", "0.5")


def wrong_lists() -> list[tuple[tuple[str, ...], str, object]]:
    """Pair each option that is a list with the values that it may not take."""
    found = []
    for words, name, hint in LISTS:
        of_texts = any(kind in str(hint) for kind in ("list[str]", "Sequence[str]", "Mapping"))
        for value in WRONG_LISTS:
            told = yaml.safe_load(value.replace("nan", ".nan"))
            # A list of texts, or one of any length, takes some of these.
            if not fits(told, hint) and ("nan" in value or not of_texts):
                found.append((words, name, told))
    return found


@pytest.mark.parametrize(("words", "name", "value"), wrong_lists())
def test_lists_have_their_length_and_finite_entries(words: tuple[str, ...], name: str, value: object) -> None:
    assert name in refused(words, name, value)


def test_every_list_has_wrong_values_to_refuse() -> None:
    assert {name for _, name, _ in wrong_lists()} == {name for _, name, _ in LISTS}


@pytest.mark.parametrize(("words", "name", "hint"), CLOSED, ids=ids(CLOSED))
def test_closed_options_refuse_what_they_do_not_know(words: tuple[str, ...], name: str, hint: Any) -> None:
    message = refused(words, name, 7777 if name == "scene.features" else "nonsense")
    assert name in message
    names = next((r.names() for r in rules_of(hint) if isinstance(r, OneOf)), None)
    for each in names or next(typing.get_args(r) for r in rules_of(hint) if typing.get_origin(r) is Literal):
        assert str(each) in message


RANGES = [
    (words, name, rule) for words, name, hint in NUMBERS for rule in rules_of(hint) if isinstance(rule, Range)
]


@pytest.mark.parametrize(("words", "name", "rule"), RANGES, ids=ids(RANGES))
def test_numbers_keep_their_range(words: tuple[str, ...], name: str, rule: Range) -> None:
    if rule.low is not None:
        assert name in refused(words, name, int(rule.low) - (not rule.above))
    if rule.high is not None and rule.high < 2**60:
        assert name in refused(words, name, int(rule.high) + (not rule.below))


@pytest.mark.parametrize("words", sorted({words for words, _, _ in ALL}))
def test_every_default_is_allowed(words: tuple[str, ...]) -> None:
    assert check_values(composed(*words)).keys() == set(PARTS)


@pytest.mark.parametrize(
    ("term", "said"),
    [
        ("{loss:sds,scale:nan}", "guidance.terms[0].scale"),
        ("{loss:sds,weighting:nonsense}", "guidance.terms[0].weighting must be sigma_squared"),
        ("{loss:sds,weight:inf}", "guidance.terms[0].weight"),
        ("{loss:sds,weight:{start:1,end:nan}}", "guidance.terms[0].weight"),
        ("{loss:ism,interval:2}", "guidance.terms[0].interval must be a number in [0, 1]"),
        ("{loss:vsd,prediction:x0}", "guidance.terms[0].prediction must be epsilon or v_prediction"),
        ("{loss:vsd,rank:0}", "guidance.terms[0].rank"),
        ("{loss:sds,scael:3}", "did you mean 'scale'"),
        ("{loss:dsd}", "needs a loss, one of asd"),
        ("{loss:tp_sds}", "write loss: sds"),
        ("{loss:tp_sds}", "write loss: sds"),
        ("{weight:1}", "needs a loss"),
        ("{loss:sds,prompt:3}", "guidance.terms[0].prompt must be text"),
        ("sds", "must be a mapping"),
    ],
)
def test_terms_are_checked_as_their_losses_are(term: str, said: str) -> None:
    assert said in error_of("guidance=mix", f"guidance.terms=[{term}]")


def test_a_mixture_needs_terms() -> None:
    assert "guidance.terms must be a list of losses" in error_of("guidance=mix", "guidance.terms=[]")


def test_a_registered_weighting_is_known() -> None:
    @register_weighting
    def mine(alpha: Any, sigma: Any) -> Any:
        return sigma

    try:
        assert compose_config(["prompt=x", "guidance.weighting=mine"]).guidance.weighting == "mine"
        assert "hifa or mine" in error_of("guidance.weighting=yours")
    finally:
        del WEIGHTINGS["mine"]


def test_closed_options_list_what_the_code_knows() -> None:
    def of(target: Any, name: str) -> Any:
        hint = hints_of(target, rules=True)[name]
        return next(set(typing.get_args(r)) for r in rules_of(hint) if typing.get_origin(r) is Literal)

    assert of(HashGridScene, "density_activation") == set(ACTIVATIONS)
    assert of(HashGridScene, "backend") == set(BACKENDS)
    assert of(HashGridScene, "background") == set(SCENE_BACKGROUNDS)
    # Groups of options of which each is one of a list that other parts go by.
    assert [item.name for item in dataclasses.fields(Turns)] == list(SHADINGS[1:])
    assert [item.name for item in dataclasses.fields(Views)][: len(OWN_PROMPTS)] == list(OWN_PROMPTS)


def test_a_hash_grid_can_do_all_that_is_asked_of_a_scene() -> None:
    # It shapes what it shows, so there is no mesh to give it; what fills space has a shape.
    assert {*NEEDS.values(), *PENALTIES} - {"mesh", "shape"} <= HashGridScene.features
    assert not ImageScene.features


FLAT = [
    "penalties.sparsity=5", "penalties.smoothness={start:0,end:1}", "penalties.orientation=1", "penalties.opaqueness=1",
    "render.patch=16", "render.shading=lambertian", "render.recompute=true", "render.chunk_rays=64", "render.latent_until=.5",
    "prior_options.control=depth", "prior_options.control=normal", "prior_options.control=mask", "image=p.png", "view_words=four",
    "views.front=x", "perp_neg.enabled=true", "penalties.reference_rgb=1",
]  # fmt: skip


@pytest.mark.parametrize("word", FLAT)
def test_what_a_picture_cannot_do_is_refused(word: str) -> None:
    assert word.partition("=")[0] in error_of("scene=image", word)


@pytest.mark.parametrize(
    "word", ["view_words=none", "view_words=auto", "penalties.sparsity=0", "prior_options.control=p.png"]
)
def test_what_a_picture_can_do_is_not(word: str) -> None:
    assert compose_config(["prompt=x", "scene=image", word], loaded=True).scene.height == 64


def test_a_comparison_with_a_picture_needs_one() -> None:
    for name in ("rgb", "mask", "depth", "normal", "palette"):
        assert "add image=FILE" in error_of(f"penalties.reference_{name}=1")
    assert "reference.depth=FILE" in error_of("image=p.png", "penalties.reference_depth=1")


class Silent:
    def __init__(self, *, size: int = 3, seed: int = 0) -> None: ...


def test_a_scene_that_says_nothing_of_itself_is_told_how() -> None:
    message = error_of("scene._target_=test_options.Silent")
    assert "features" in message and "frozenset" in message


@pytest.mark.parametrize("group", PARTS)
def test_a_part_that_is_not_there_is_one_line(group: str) -> None:
    assert f"{group}._target_" in error_of(f"{group}._target_=nowhere.nothing")
    assert f"{group} names no part" in error_of(f"~{group}")


def test_an_unknown_option_in_a_configuration_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\noptimiser:\n  epss: 1.0\n")
    with pytest.raises(ValueError, match=r"unknown option 'optimiser.epss'; did you mean 'optimiser.eps'\?"):
        compose_config(["prompt=x", "experiment=mine"], [str(tmp_path)])


def test_types_are_told_apart() -> None:
    assert fits(3, Count) and not fits(0, Count) and not fits(True, Count) and not fits(3.5, Count)
    assert fits(0.5, Fraction) and fits(1, Fraction) and not fits("1", Fraction)
    assert fits(None, float | None) and not fits(None, float)
    assert fits([1, 0.5], tuple[Count, Fraction]) and not fits([0.5, 1], tuple[Count, Fraction])
    assert fits(64, Annotated[Any, Scheduled(), Range(8)]) and not fits(
        4, Annotated[Any, Scheduled(), Range(8)]
    )
    assert (
        describe(Annotated[list[float], Length.exactly(2), Range(0, 1, below=True)])
        == "a list of 2, each a number in [0, 1)"
    )
    with pytest.raises(ValueError, match=r"x must be a number in \[0, 1\] or a schedule"):
        check_option("x", {"start": 0, "end": 2}, Fraction, 10, 1)
