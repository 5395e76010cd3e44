"""What prompts should look like: how they are read, and truths from shapes, meshes and the pack's pictures."""

from __future__ import annotations

import importlib
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_things
import torch
from tiny_things import Tiny, judge_of, view_of

from distill.cameras import turntable
from distill.embedded import things, world
from distill.embedded.judge import SHIPPED, load_judge
from distill.embedded.vocabulary import write_names
from distill.lab import truth as lab_truth
from distill.lab.comparison import figures, methods, records, run
from distill.lab.metrics import mean_colour, saturation
from distill.lab.truth import (
    VIEWS,
    Match,
    Source,
    Truth,
    asked,
    best_shape,
    check,
    matches,
    nearest,
    origin,
    truths,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny_things.write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def meshes(tiny: Tiny) -> Source:
    return Source(tiny.archives, table=tiny.table)


@pytest.fixture(scope="module")
def pictures(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Two of the stools without their archives, from a pack."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "examples" / "embedded"))
        render = importlib.import_module("render_things")
    folder = tmp_path_factory.mktemp("pack")
    render.pack(tiny.things[:2], tiny.archives, folder)
    return Source(None, folder, tiny.table)


@pytest.mark.parametrize(
    ("prompt", "name", "colour", "caption"),
    [
        ("a red mug", "mug", "red", "a red mug"),
        ("a photo of a brown chair", "chair", "brown", "a brown chair"),
        ("a sofa", "sofa", None, "a sofa"),
        ("Sofa", "sofa", None, "a sofa"),
        ("a sofa that is orange", "sofa", "orange", "an orange sofa"),
        ("an electric guitar", "electric guitar", None, "an electric guitar"),
        ("red scissors", "scissors", "red", "red scissors"),
        ("a captain's bed", "captain's bed", None, "a captain's bed"),
    ],
)
def test_a_prompt_is_read(prompt: str, name: str, colour: str | None, caption: str) -> None:
    found = asked(prompt)
    assert (found.name, found.colour, found.caption) == (name, colour, caption)
    variants = [thing for thing in things.table() if thing.name == name and (thing.paint or not colour)]
    assert list(found.things) == variants
    if found.things:
        assert found.held_out is (colour is not None and things.held_out(colour, name))
    else:
        assert colour is not None and found.held_out is world.held_out(colour, name)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a wombat", "'wombat' is none of its names"),
        ("a red", "'red' is none of its names"),
        ("a mug", "a mug has no colour of its own"),
        ("a red blue sofa", "'blue sofa' is none of its names"),
        ("a red cat", "the colour in the prompt 'a red cat' cannot be chosen"),
    ],
)
def test_what_has_no_one_truth_is_refused_in_one_line(prompt: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        asked(prompt)
    assert "\n" not in str(caught.value)


def corners_seen(size_cm: tuple[float, float, float], azimuth_deg: float, size: int) -> np.ndarray[Any, Any]:
    """Where a pinhole camera at distance 3.2, 15 degrees up, with a field of view of 40, sees a box's corners, by hand."""
    width, height, depth = np.array(size_cm) * 0.95 / math.sqrt(sum(side**2 for side in size_cm))
    signs = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    points = signs * np.array([depth, width, height])
    a, e = math.radians(azimuth_deg), math.radians(15)
    right = np.array([-math.sin(a), math.cos(a), 0])
    back = np.array([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
    up = np.cross(back, right)
    far = 3.2 - points @ back
    focal = size / 2 / math.tan(math.radians(20))
    return np.stack(
        [size / 2 + focal * (points @ right) / far, size / 2 - focal * (points @ up) / far], axis=1
    )


@pytest.mark.parametrize("variant", [0, 1, 2])
def test_a_silhouette_of_a_mesh_is_where_a_pinhole_camera_sees_its_corners(
    tiny: Tiny, meshes: Source, variant: int
) -> None:
    truth = truths("a stool", meshes)[variant]
    assert (truth.variant, truth.cameras, truth.masks.shape) == (variant + 1, None, (16, 96, 96))
    for index in (0, 3):
        where = corners_seen(tiny.things[variant].size_cm, 22.5 * index, 96)
        rows, columns = np.nonzero(truth.masks[index].numpy())
        found = (columns.min(), columns.max() + 1, rows.min(), rows.max() + 1)
        expected = (
            *where[:, 0][[where[:, 0].argmin(), where[:, 0].argmax()]],
            where[:, 1].min(),
            where[:, 1].max(),
        )
        assert found == pytest.approx(expected, abs=1.0)


def test_a_truth_has_the_colour_that_is_asked_for(meshes: Source) -> None:
    red = truths("a red stool", meshes)
    assert [truth.variant for truth in red] == [1, 2]  # the third's colour cannot be chosen
    # Light scales all three channels alike: red is (0.86, 0.10, 0.10).
    assert saturation(red[0].rgb, red[0].opacity) == pytest.approx(1 - 0.10 / 0.86, abs=1e-3)
    r, g, b = mean_colour(red[0].rgb, red[0].opacity).tolist()
    assert g == pytest.approx(b) and r / g == pytest.approx(8.6, rel=1e-3)
    grey = truths("a stool", meshes)[0]
    assert saturation(grey.rgb, grey.opacity) == pytest.approx(0, abs=1e-3)
    assert red[0].mesh is not None and red[0].mesh().extents == pytest.approx(
        2 * 0.95 * np.array([1, 1, 3]) / math.sqrt(11)
    )


def test_a_kinds_truth_is_its_shape() -> None:
    (truth,) = truths("a red cube")
    assert truth.variant == 1 and truth.mesh is not None
    assert truth.mesh().extents == pytest.approx(np.full(3, 2 * 0.95 / math.sqrt(3)))
    assert (truth.rgb.shape, truth.opacity.shape) == ((VIEWS, 3, 64, 64), (VIEWS, 1, 64, 64))


@pytest.mark.parametrize("turned", [0.0, 67.5])
def test_an_asset_is_compared_with_every_variant(tiny: Tiny, meshes: Source, turned: float) -> None:
    view = view_of(tiny.things[1], tiny.archives, turned)
    rgb, opacity = figures.pictures_of(view)
    found = matches(view, truths("a stool", meshes), rgb, opacity)
    best = best_shape(found)
    assert (best.truth.variant, best.offset_deg) == (2, turned)
    assert best.iou == pytest.approx(1.0, abs=1e-3) and best.distance == pytest.approx(0.0, abs=0.02)
    assert nearest(found) is best and max(match.iou for match in found if match is not best) < 0.7


def test_a_pack_gives_truths_at_its_own_cameras(tiny: Tiny, meshes: Source, pictures: Source) -> None:
    packed, true = truths("a stool", pictures), truths("a stool", meshes)
    assert [truth.variant for truth in packed] == [1, 2] and all(truth.mesh is None for truth in packed)
    for ours, theirs in zip(packed, true, strict=False):
        assert ours.cameras is not None and ours.masks.shape == (VIEWS, 64, 64)
        off = (ours.cameras.azimuth_deg - turntable(VIEWS).azimuth_deg + 180) % 360 - 180
        assert off.abs().max() <= 11.25
        error = mean_colour(ours.rgb, ours.opacity) - mean_colour(theirs.rgb, theirs.opacity)
        assert error.abs().max() < 0.03
    view = view_of(tiny.things[1], tiny.archives, 45.0)
    best = best_shape(matches(view, packed, *figures.pictures_of(view)))
    assert best.truth.variant == 2 and best.offset_deg % 180 == 45.0 and best.iou > 0.95


def test_the_best_shape_and_the_nearest_variant_may_differ() -> None:
    none: Any = None
    shape, like = Match(none, 0.8, 0.0, 0.5), Match(none, 0.7, 0.0, 0.1)
    assert (shape.distance, like.distance) == (pytest.approx(0.7), pytest.approx(0.4))
    assert best_shape([like, shape]) is shape and nearest([shape, like]) is like


def turning(period: int) -> Any:
    """A judge to whom an object looks the same again after so many eighths of a turn; pictures say theirs in red."""

    class Turning:
        def image_features(self, shown: torch.Tensor) -> torch.Tensor:
            angle = shown[:, 0, 0, 0] * 8 * 2 * math.pi / period
            return torch.stack([angle.cos(), angle.sin()], dim=1)

    return Turning()


def test_a_thing_has_a_front_where_its_back_looks_like_no_front() -> None:
    rgb = (torch.arange(8) / 8).reshape(8, 1, 1, 1).expand(8, 3, 2, 2)
    truth = Truth(1, rgb, rgb[:, :1], rgb[:, 0] > 2)
    sofa = asked("a sofa")
    assert figures.has_front(turning(8), sofa, truth)
    assert not figures.has_front(turning(4), sofa, truth)
    assert figures.janus(turning(8), rgb, truth, 0.0) == 0.0
    assert figures.janus(turning(8), rgb.roll(4, 0), truth, 0.0) == 1.0
    # Of the kinds it is known.
    assert figures.has_front(turning(4), asked("a red car"), truth)
    assert not figures.has_front(turning(8), asked("a red sphere"), truth)


def scored(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A judge that knows stools; its share of hits is set to 0.5."""
    monkeypatch.setattr(figures, "r_precision", lambda judge, shown, caption: 0.5)
    return judge_of(["stool", "vase"])


def test_figures_of_an_asset_that_is_one_of_the_variants(
    tiny: Tiny, meshes: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, field = scored(monkeypatch), None
    monkeypatch.setattr(figures, "distance_to", lambda view, field, true, offset: true.extents.max())
    view: Any = view_of(tiny.things[0], tiny.archives)
    found = figures.measure(view, field, "a stool", judge, meshes)  # type: ignore[arg-type]
    assert (found["iou_variant"], found["variant"], found["variants"]) == (1, 1, 3)
    assert found["iou"] == pytest.approx(1, abs=1e-3) and found["colour_error"] == pytest.approx(0, abs=1e-3)
    assert found["saturation"] == pytest.approx(found["true_saturation"], abs=1e-3)
    assert found["red"] == pytest.approx(found["green"]) and found["r_precision"] == 0.5
    assert found["chamfer"] == pytest.approx(
        2 * 0.95 * 3 / math.sqrt(11)
    )  # the best variant's mesh, the pole's


def test_without_a_truth_what_needs_one_is_left_out(
    tiny: Tiny, meshes: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, nowhere = scored(monkeypatch), Source(table=tiny.table)
    monkeypatch.setattr(figures, "distance_to", lambda view, field, true, offset: 0.0)
    view: Any = view_of(tiny.things[0], tiny.archives)
    found = figures.measure(view, None, "a stool", judge, nowhere)  # type: ignore[arg-type]
    missing = {name for name, value in found.items() if value is None}
    assert missing == {
        "iou", "offset_deg", "iou_variant", "variant", "variants", "colour_error", "true_saturation", "janus",
        "chamfer",
    }  # fmt: skip
    assert set(found) == set(figures.measure(view, None, "a stool", judge, meshes))  # type: ignore[arg-type]
    said = [origin(prompt, source) for prompt in ("a stool", "a red mug") for source in (nowhere, meshes)]
    assert said == ["none", "archives", "shapes", "shapes"]


def test_a_source_without_a_judge_takes_the_one_that_ships_and_knows_the_prompts(tmp_path: Path) -> None:
    for prompts, known in (
        (["a red mug", "a blue car"], "embedded"),
        (["a red mug", "a hamburger"], "things"),
        ([], "embedded"),
    ):
        assert (
            lab_truth.judge_of(Source(), prompts).vocabulary == load_judge(folder=SHIPPED[known]).vocabulary
        )
    with pytest.raises(ValueError, match="no judge in"):
        lab_truth.judge_of(Source(judge=tmp_path), ["a hamburger"])


def test_a_prompt_that_the_prior_takes_for_another_is_refused(tmp_path: Path) -> None:
    write_names(tmp_path, [("jar", "a", True, "pot")])
    lab_truth.check_meant(["a jar", "a red jar", "a pot", "a red mug"], str(tmp_path))
    with pytest.raises(ValueError, match="takes 'a red vase' for 'a red jar'") as caught:
        lab_truth.check_meant(["a jar", "a red vase"], str(tmp_path))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="does not know 'qwrtz'"):
        lab_truth.check_meant(["a qwrtz"], str(tmp_path))
    lab_truth.check_meant(["a red vase"], "sd-1.5")  # takes any prompt
    assert (
        run.prior_name(None, ["a hamburger"]) == "things"
        and run.prior_name(None, ["a red mug"]) == "embedded"
    )
    lab_truth.check_meant(methods.THINGS, "things")


def test_cells_of_another_judge_are_refused(tmp_path: Path) -> None:
    cell = records.Cell("sds", "a red mug", 0)
    cell.folder(tmp_path).mkdir(parents=True)
    said = {"prompt": "a red mug", "options": {}}
    kinds = {"judge": records.judge_name(SHIPPED["embedded"]), **said}
    things_too = {"judge": records.judge_name(SHIPPED["things"]), **said}
    own = {"judge": records.judge_name(tmp_path), **said}
    assert (kinds["judge"], things_too["judge"], own["judge"]) == ("", "things", str(tmp_path))
    (cell.folder(tmp_path) / "cell.json").write_text(json.dumps(kinds))
    assert run.finished(cell.folder(tmp_path), kinds, {})
    with pytest.raises(ValueError, match="was made with judge , not things"):
        run.finished(cell.folder(tmp_path), things_too, {})
    with pytest.raises(ValueError, match="measured by several judges"):
        records.judge_of([kinds, things_too])
    # A report asks the judge that measured, whatever the prompts are.
    assert records.judge_of([things_too]).channels == load_judge(folder=SHIPPED["things"]).channels
    assert records.judge_of([kinds]).channels == load_judge().channels
    with pytest.raises(ValueError, match=f"no judge in {tmp_path}"):
        records.judge_of([own])


def test_what_cannot_be_measured_is_refused_before_anything_is_made(tiny: Tiny, tmp_path: Path) -> None:
    judge = judge_of(["stool"])
    check(["a stool", "a red stool", "a red mug"], Source(tiny.archives, table=tiny.table), judge)
    for prompts, source, said in (
        (["a sofa"], Source(tiny.archives, table=tiny.table), "'sofa' is none of its names"),
        (["a stool"], Source(tmp_path, table=tiny.table), r"Tiny\.sh3f is not there, and 'a stool' needs it"),
        (["a stool"], Source(None, tmp_path, tiny.table), "holds no pack of things"),
        (["a vase"], Source(table=tiny.table), "the judge does not know 'vase', so it cannot measure things"),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            check(prompts, source, judge)
        assert "\n" not in str(caught.value)


def test_the_comparison_on_things_has_ten_names_with_variants_and_every_loss_twice() -> None:
    variants = Counter(thing.name for thing in things.table())
    names = [asked(prompt) for prompt in methods.THINGS]
    assert len({one.name for one in names}) == len(methods.THINGS) >= 10
    assert all(variants[one.name] >= 3 and one.colour is None for one in names)
    assert [one.caption for one in names] == list(methods.THINGS)
    for name in ("sds_100", "sds_7.5", "csd", "asd", "vsd"):
        plain, paced = methods.ON_THINGS[name], methods.ON_THINGS[f"tp_{name}"]
        assert {**plain, "timesteps": "dreamtime"} == paced and plain["timesteps"] == "uniform"
    assert [methods.ON_THINGS[name]["guidance.scale"] for name in ("sds_100", "sds_7.5")] == [100, 7.5]
