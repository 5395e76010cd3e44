"""Benchmarks on real objects: whole assets of names and variants, and a prior's samples of every name."""

from __future__ import annotations

import importlib
import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_things
import torch
from PIL import Image
from tiny_things import Tiny, view_of

from distill.cameras import turntable
from distill.embedded import captions, things, world
from distill.embedded.shoot import shoot
from distill.embedded.vocabulary import Row, read_names, write_names
from distill.lab.truth import Source, asked
from distill.silhouettes import silhouette_iou

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny_things.write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark, with a judge that finds half of the pictures right."""
    monkeypatch.syspath_prepend(str(EXAMPLES / "benchmarks"))
    module = importlib.import_module("quality")
    monkeypatch.setattr(module, "r_precision", lambda judge, shown, caption: 0.5)
    monkeypatch.setattr(module, "judge_of", lambda *_: tiny_things.judge_of(["stool", "vase"]))
    return module


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES / "embedded"))
    return importlib.import_module("evaluate_things")


def test_the_benchmark_on_things_asks_for_forty_names_eight_of_them_in_held_out_colours(quality: Any) -> None:
    found = [asked(prompt) for prompt in quality.THINGS]
    assert [one.caption for one in found] == list(quality.THINGS)
    assert len({one.name for one in found}) == len(found) == 40
    assert Counter((one.colour is None, one.held_out) for one in found) == {
        (True, False): 20, (False, False): 12, (False, True): 8,
    }  # fmt: skip


def test_an_asset_of_a_thing_is_measured_against_its_variants(
    quality: Any, tiny: Tiny, tmp_path: Path
) -> None:
    source = Source(tiny.archives, table=tiny.table, size=64, fine=64)
    colour = world.COLOURS["red"]
    asset, made = SimpleNamespace(view=view_of(tiny.things[1], tiny.archives, 45.0, colour)), []

    def generate(prompt: str, **options: Any) -> Any:
        made.append((prompt, options))
        return asset

    for _ in range(2):
        row = quality.make("a red stool", tmp_path / "red", {"iterations": 3}, generate, source)
    # The second time, what was measured is read.
    assert len(made) == 1 and made[0][1]["iterations"] == 3
    assert (row["variant"], row["variants"], row["azimuth_offset_deg"]) == (2, 2, 45.0)
    assert row["iou"] == pytest.approx(1.0, abs=1e-3) and row["truth"] == "archives"
    assert (row["r_precision"], row["true_r_precision"]) == (0.5, 0.5)
    # With another judge, the asset is measured again, and keeps its time.
    result = tmp_path / "red" / "quality.json"
    (tmp_path / "red" / "asset").mkdir()
    result.write_text(json.dumps(row | {"judge": "another", "r_precision": 0.25, "seconds": 12.0}))
    again = quality.make("a red stool", tmp_path / "red", {"iterations": 3}, generate, source)
    assert again == row | {"seconds": 12.0} and len(made) == 2
    held_out = things.held_out("red", "stool")
    assert quality.pair_of(row) == ("held out" if held_out else "trained")
    with pytest.raises(ValueError, match="choose another --output"):
        quality.make("a red stool", tmp_path / "red", {"iterations": 4}, generate, source)
    bare = quality.make("a stool", tmp_path / "bare", {}, generate, Source(table=tiny.table))
    assert (bare["iou"], bare["true_r_precision"], bare["truth"]) == (None, None, "none")
    shape = quality.make("a red stool", tmp_path / "shape", {}, generate, source, judged=False)
    assert (shape["r_precision"], shape["true_r_precision"], shape["iou"]) == (None, None, row["iou"])
    assert (
        quality.table([shape])
        .splitlines()[2]
        .startswith(f"| a red stool | {quality.pair_of(row)} | - | - | 1.000")
    )
    row["seconds"], bare["seconds"] = 30.0, None
    first, _, *lines = quality.table([row, bare]).splitlines()
    assert first.endswith("| turned by | seconds | variant |")
    pair = "held out" if held_out else "trained"
    assert lines == [
        f"| a red stool | {pair} | 0.500 | 0.500 | 1.000 | 45° | 30 | 2 (of 2) |",
        "| a stool | no colour | 0.500 | - | - | - | - |  |",
        f"| **mean of 1** | {pair} | 0.500 | 0.500 | 1.000 |  | 30 |  |",
        "| **mean of 1** | no colour | 0.500 | - | - |  | - |  |",
        "| **mean of 2** | all | 0.500 | 0.500 | 1.000 |  | 30 |  |",
    ]
    strips = [tmp_path / name / "strip.png" for name in ("red", "bare")]
    with Image.open(strips[0]) as known, Image.open(strips[1]) as unknown:
        assert known.size == unknown.size == (5 * 128, 128)
        assert known.getpixel((64, 64)) != (255, 255, 255) == unknown.getpixel((64, 64))
    quality.draw_sheet([row, bare], strips, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").exists()


def test_the_benchmark_refuses_before_it_makes_anything(
    quality: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality.distill, "generate", None)
    for options, said in (
        (["--things", "2", "--archives", str(tmp_path)], "is not there, and 'a hamburger' needs it"),
        (["--things", "2", "--pack", str(tmp_path)], "holds no pack of things"),
        (["--things", "2"], "the judge does not know 'hamburger'"),
    ):
        monkeypatch.setattr(sys, "argv", ["quality.py", "--output", str(tmp_path / "out"), *options])
        with pytest.raises(ValueError, match=said):
            quality.main()
    monkeypatch.setattr(sys, "argv", ["quality.py", "--archives", str(tmp_path)])
    with pytest.raises(SystemExit):
        quality.main()
    assert not (tmp_path / "out").exists()


def test_samples_ask_for_every_name_in_every_way(samples: Any, tiny: Tiny) -> None:
    found = samples.requests(tiny.things, 24)
    assert [one.name for one in found] == ["stool", "vase"] * 12
    stools, vases = found[::2], found[1::2]
    assert Counter(one.way for one in stools) == dict.fromkeys(samples.WAYS, 4)
    assert all(one.way == "as it is" and one.colour is None for one in vases)
    for one in stools:
        held_out = one.colour is not None and things.held_out(one.colour, "stool")
        assert (one.colour is None) == (one.way == "as it is") and held_out == (one.way == "held out")
    assert len({one.direction for one in stools}) == 12
    assert vases[0].prompt == f"a vase, {world.DIRECTIONS[5]}"
    assert [one.name for one in samples.requests(things.table(), 2)] == [
        things.names()[0],
        things.names()[len(things.names()) // 2],
    ]
    every = samples.requests(things.table(), len(things.names()))
    assert [one.name for one in every] == list(things.names())
    ways = Counter(one.way for one in every)
    assert min(ways.values()) > 80 and len({one.direction for one in every}) == 16


def test_a_sample_is_right_where_the_judge_names_what_was_asked_for(samples: Any, tiny: Tiny) -> None:
    meanings = captions.of(tiny.things)
    said = [captions.write(*meaning) for meaning in meanings]
    blue = samples.Request("stool", "a", "blue", 0, "trained")
    plain = samples.Request("stool", "a", None, 0, "as it is")

    class Fixed:
        """Finds the captions whose numbers are a picture's first row the nearer the earlier they stand there."""

        def similarity(self, images: torch.Tensor, candidates: list[str]) -> torch.Tensor:
            order = images[:, 0, 0].long()
            return -order.argsort(dim=1).float()

    def right(one: Any, *order: str) -> bool:
        ranked = [*order, *(caption for caption in said if caption not in order)]
        shown = torch.tensor([said.index(caption) for caption in ranked]).float().expand(1, 3, 1, -1)
        judge: Any = Fixed()
        (found,) = samples.judge_right(judge, shown, [one], meanings)
        return bool(found)

    assert right(blue, "a blue stool") and not right(blue, "a red stool")
    # A stool without a colour says nothing of it: the next one that has one does.
    assert right(blue, "a stool", "a vase", "a blue stool") and not right(blue, "a stool", "a red stool")
    assert not right(blue, "a vase", "a blue stool")
    # A thing as it is may happen to be blue.
    assert right(plain, "a stool") and right(plain, "a blue stool") and not right(plain, "a vase", "a stool")


def test_shares_and_the_worst_names_by_hand(samples: Any) -> None:
    asked_for = [
        samples.Request(name, "a", None if way == "as it is" else "red", 0, way)
        for name in ("hat", "cat", "mat")
        for way in ("as it is", "trained")
    ]
    truth, made = [True] * 6, [True, True, True, False, False, False]
    assert samples.summary(asked_for, truth, made).splitlines()[2:] == [
        "| as they are: name right | 100.0 ± 0.0 | 66.7 ± 27.2 | 3 |",
        "| trained pairs: name and colour right | 100.0 ± 0.0 | 33.3 ± 27.2 | 3 |",
        "| held-out pairs: name and colour right | - | - | 0 |",
        "| all | 100.0 ± 0.0 | 50.0 ± 20.4 | 6 |",
    ]
    lines = samples.worst(asked_for, truth, made).splitlines()
    assert lines[0].startswith("| the worst 2 of 3 names; 1 have no sample right |")
    assert lines[2:] == ["| mat | 0 | 2 | 2 |", "| cat | 1 | 2 | 2 |"]
    # Of two that are equally bad, the one that the judge can tell from its own pictures comes first.
    told = samples.worst(asked_for, [True, False, False, False, True, True], [False] * 6).splitlines()
    assert [line.split()[1] for line in told[2:]] == ["mat", "hat", "cat"]
    assert samples.worst(asked_for, truth, truth) == "Every sample of every name is right."
    assert samples.chosen(438)[:3] == [0, 6, 13] and len(samples.chosen(438)) == 64
    assert samples.chosen(3) == [0, 1, 2]


def test_names_that_are_not_learnt_are_left_out_by_hand(samples: Any, tmp_path: Path) -> None:
    evaluate = importlib.import_module("evaluate_prior")
    rows: list[Row] = [(name, "a", False, "") for name in ("couch", "hat", "vase", "stool")]
    write_names(tmp_path, rows)
    names = ["couch", "couch", "hat", "hat", "vase", "vase", "vase", "vase"]
    wanted = [samples.Request(name, "a", None, 0, "as it is") for name in names]
    # People call a couch a sofa as well; the vase is right in one of four.
    counts = evaluate.learnt(wanted, ["sofa", "couch", "hat", "vase", "vase", "hat", "hat", "sofa"])
    assert counts == {"couch": (2, 2), "hat": (1, 2), "vase": (1, 4)}
    # The judge does not know the second vase, which is nearest to a true picture of one.
    near = ["hat", "hat", "hat", None, "vase", "vase", "hat", None]
    told = ["sofa", "couch", "hat", "vase", "vase", "hat", "hat", "sofa"]
    assert evaluate.learnt(wanted, told, near) == {"couch": (2, 2), "hat": (1, 2), "vase": (2, 4)}
    assert "3 of 4 names" in evaluate.keep(tmp_path, counts, 0.5)
    # The stool was not asked for: nothing says that it is not learnt.
    assert read_names(tmp_path / "names.json") == [*rows[:2], rows[3]]


@pytest.mark.parametrize(
    ("script", "names"),
    [
        ("evaluate_prior", {"sheet": "samples.png", "things_sheet": "things.png", "table": "prior.md"}),
        ("evaluate_views", {"sheet": "views.png", "table": "views.md"}),
    ],
)
def test_what_an_evaluation_writes_is_in_its_work_folder_or_where_it_is_told(
    samples: Any, tmp_path: Path, script: str, names: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    parse, work, own = importlib.import_module(script).parse_options, tmp_path / "a" / "work", tmp_path / "b"
    options = parse(["--work", str(work)])
    assert {name: getattr(options, name) for name in names} == {
        name: work / file for name, file in names.items()
    }
    assert work.is_dir()  # before anything is sampled
    for name in names:
        changed = parse(["--work", str(work), f"--{name.replace('_', '-')}", str(own / name / "x")])
        assert getattr(changed, name) == own / name / "x" and (own / name).is_dir()
        assert all(getattr(changed, other) == getattr(options, other) for other in names if other != name)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        parse(["--work", str(tmp_path / "file")])
    assert "file cannot be made: File exists; choose another folder" in capsys.readouterr().err


@pytest.mark.slow
def test_things_are_sampled_judged_and_drawn(
    samples: Any, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distill.priors import load_prior

    importlib.import_module("render_things").pack(tiny.things[1:], tiny.archives, tmp_path / "pack")
    pack = things.read_pack(tmp_path / "pack")
    evaluate = importlib.import_module("evaluate_prior")
    options = SimpleNamespace(
        things=None, steps=1, scale=1.0, interval=(0.0, 1.0), seed=0, things_sheet=tmp_path / "things.png", names=tmp_path / "names.csv", keep=None
    )  # fmt: skip
    judge, said = tiny_things.judge_of(["stool", "vase"]), captions.of(pack.things)
    text = evaluate.evaluate_names(options, judge, load_prior("embedded"), pack, said)
    assert text.splitlines()[0].startswith("| things, measured by the judge")
    with Image.open(tmp_path / "things.png") as sheet:
        assert sheet.size == (8 * 96, 96 + 26)  # one of each of the two names
    counted = [line.split(",") for line in (tmp_path / "names.csv").read_text().splitlines()]
    assert counted[0] == ["name", "right", "samples"]
    assert [(name, count) for name, _, count in counted[1:]] == [("stool", "1"), ("vase", "1")]
    # A red stool is the variant that can be red, a stool as it is any of the two in turn.
    red = samples.Request("stool", "a", "red", 4, "trained")
    shown = samples.true_pictures(pack, [red, samples.Request("stool", "a", None, 4, "as it is")])
    centre = shown[:, :, 32, 32]
    assert centre[0, 0] > 4 * centre[0, 1] and centre[1, 2] > centre[1, 0]
    # Each true picture is nearest to one of its own name, slightly darkened or not.
    own = [samples.Request(thing.name, "a", None, 4, "as it is") for thing in pack.things]
    assert samples.nearest_names(pack, 0.98 * samples.true_pictures(pack, own)) == [one.name for one in own]
    assert "nearest to a true picture of their name" in text


@pytest.fixture
def pictured(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES / "benchmarks"))
    return importlib.import_module("image_to_3d")


def test_objects_from_pictures_have_names_that_no_model_is_trained_on(pictured: Any) -> None:
    found = pictured.held_out(20)
    assert len({thing.name for thing in found}) == 20
    assert all(things.held_out_name(thing.name) and thing.variant == 1 for thing in found)
    for count in (0, 42):
        with pytest.raises(ValueError, match=rf"--things must be from 1 to 41, .* got {count}"):
            pictured.held_out(count)


@pytest.mark.parametrize(
    ("prompt", "known"),
    [
        ("a drill", True),
        ("a green cube", True),
        ("a tennis racket", True),
        ("a fork", False),
        ("a dragon", False),
        ("xyz", False),
    ],
)
def test_a_related_object_is_not_known(pictured: Any, prompt: str, known: bool) -> None:
    """A tennis racket is read as a rack."""
    assert pictured.is_known(prompt) is known


def test_a_thing_stands_as_in_its_true_pictures(pictured: Any, tiny: Tiny) -> None:
    """Its silhouettes from eight sides are those that assets of its name are measured against."""
    thing = things.table(tiny.table)[0]
    surface = pictured.of_thing(thing, tiny.archives).surface()
    cameras = turntable(8, 15.0)
    seen = pictured.photograph(surface, cameras, 64)[:, 3] > 0.6  # of four rays, three
    model = things.model(thing, tiny.archives)
    true = torch.from_numpy(shoot(model, thing.paint, cameras, 64, 2)[..., 4]) > 0.6
    assert silhouette_iou(seen, true).min() > 0.99


@pytest.fixture
def unlisted(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES / "embedded"))
    return importlib.import_module("unlisted_names")


def test_an_asset_of_an_unlisted_name_is_measured_against_the_true_object(
    unlisted: Any, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for = []

    def precision(judge: Any, shown: torch.Tensor, caption: str) -> float:
        asked_for.append((len(shown), caption))
        return 0.5

    monkeypatch.setattr(unlisted, "r_precision", precision)
    monkeypatch.setattr(unlisted, "judge_of", lambda *_: None)
    source = Source(tiny.archives, table=tiny.table, size=unlisted.SIZE, fine=unlisted.SIZE)
    thing = next(one for one in tiny.things if one.name == "vase")
    for turned_deg in (0.0, 90.0):
        recognised, iou = unlisted.measure(view_of(thing, tiny.archives, turned_deg), "a vase", source)
        assert recognised == 0.5 and iou > 0.97
    assert asked_for == [(8, "a vase")] * 2


def test_names_of_recognised_assets_are_listed(
    unlisted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[Row] = [(name, "a", True, "") for name in ("bench", "comb", "fence", "fork", "rabbit", "vase")]
    figures = {"a comb": (0.625, 0.6), "a fork": (1.0, 0.59), "a rabbit": (0.5, 0.9)}
    prior, output = tmp_path / "prior", tmp_path / "output"
    prior.mkdir()
    write_names(prior, [rows[5], rows[0]])
    made = []

    def generate(prompt: str, **options: Any) -> Any:
        # The prior that is asked for them knows all names.
        assert [row[0] for row in read_names(Path(options["prior"]) / "names.json")] == [
            row[0] for row in rows
        ]
        made.append(prompt)
        if prompt == "a fence":
            raise unlisted.Collapsed("empty for 100 steps")
        return SimpleNamespace(view=prompt)

    monkeypatch.setattr(unlisted.distill, "generate", generate)
    monkeypatch.setattr(unlisted, "measure", lambda view, prompt, source: figures[view])
    monkeypatch.setattr(unlisted.things, "read_pack", lambda folder: None)
    monkeypatch.setattr(unlisted.things_dataset, "known", lambda pack: rows)
    for words in ([], ["--add"]):
        argv = ["unlisted_names.py", "--output", str(output), "--pack", "p", "--prior", str(prior), *words]
        monkeypatch.setattr(sys, "argv", argv)
        unlisted.main()
        assert "1 of 4 names: comb" in capsys.readouterr().out
        listed = [row[0] for row in read_names(prior / "names.json")]
        assert listed == (["bench", "comb", "vase"] if words else ["vase", "bench"])
    assert made == [
        "a comb",
        "a fence",
        "a fork",
        "a rabbit",
    ]  # once each, also the one of which nothing is seen
