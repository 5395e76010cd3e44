"""The bundled multi-view prior, and the benchmark of what it is for."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distill.cameras import Cameras, orbit
from distill.embedded import world
from distill.embedded.judge import load_judge
from distill.embedded.prompt import asked
from distill.embedded.vocabulary import SHIPPED
from distill.lab.comparison.figures import neighbours
from distill.priors import load_prior
from distill.priors.sampling import sample
from distill.run.assembly.prior import check_prompt
from distill.run.config.compose import compose_config

FOLDER = Path(__file__).parents[1] / "examples" / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("janus")


def ring(first: float) -> Cameras:
    """Four cameras around, the first one at this azimuth."""
    azimuth = first + torch.arange(4) * 90.0
    return orbit(azimuth, torch.full((4,), 15.0), torch.full((4,), 3.2), 40.0)


def test_it_is_small_and_has_what_the_text_prior_has_but_for_the_network() -> None:
    files = [path for path in SHIPPED["views"].rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20 * 2**20
    for part in ("text_encoder/model.safetensors", "tokenizer/tokenizer.json"):
        assert (SHIPPED["views"] / part).read_bytes() == (SHIPPED["embedded"] / part).read_bytes()


def test_its_name_brings_groups_of_cameras_and_one_view_does_not() -> None:
    config = compose_config(["prompt=a red mug", "prior=views"])
    assert config.cameras._target_.endswith("groups") and config.cameras.views == 4
    assert config.iterations == 400
    single = compose_config(["prompt=a red mug", "prior=views", "prior_options.views=1"])
    assert single.cameras._target_.endswith("ranges") and single.iterations == 400
    with pytest.raises(
        ValueError, match=r"prior=views does not know 'hamburger'.*; prior=things does, and is chosen"
    ):
        asked("views", "a hamburger")


def test_a_prompt_with_words_of_a_view_is_for_single_pictures() -> None:
    words = ["prompt='a red mug, front view'", "prior=views"]
    with pytest.raises(
        ValueError, match=r"four sides at once.*'a red mug, front view'.*add prior_options.views=1"
    ):
        check_prompt(compose_config(words))
    assert check_prompt(compose_config([*words, "prior_options.views=1"])) == ""
    assert check_prompt(compose_config(["prompt=a red mug", "prior=views"])) == ""


@pytest.mark.slow
@pytest.mark.weights
def test_its_views_face_where_their_cameras_are() -> None:
    """Of three kinds with a front, in three directions each: the judge finds at least ten of twelve within 22.5 degrees."""
    prior, judge, right = load_prior("views"), load_judge(), 0
    for number, caption in enumerate(("a red mug", "a yellow duck", "a purple teapot")):
        first = 45.0 * number
        x = sample(
            prior, [caption] * 4, generator=torch.Generator().manual_seed(number), steps=10, clip=1.0,
            cameras=ring(first),
        )  # fmt: skip
        words = [f"{caption}, {view}" for view in world.DIRECTIONS]
        said = judge.rank(prior.decode(x).clamp(0, 1), words)[:, 0]
        asked = torch.arange(4) * 4 + round(first / 22.5)
        gap = (said - asked) % 16
        right += int((torch.minimum(gap, 16 - gap) <= 1).sum())
    assert right >= 10


def test_true_rings_are_judged_right_and_from_where_they_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five objects, 18 of 20 pictures at least, and 14 from within 22.5 degrees; by chance, the latter would be 4."""
    monkeypatch.syspath_prepend(str(FOLDER.parent / "embedded"))
    script: Any = importlib.import_module("evaluate_views")
    some = [("red", "duck"), ("blue", "mug"), ("green", "rocket"), ("purple", "teapot"), ("yellow", "car")]
    monkeypatch.setattr(script, "pairs", lambda: some)
    images, judge = script.true_rings(), load_judge()
    assert images.shape == (20, 3, 64, 64)
    verdicts = script.verdicts_of(judge, images, [world.caption(*pair) for pair in script.pairs()])
    assert [(one.colour, one.kind) for one in verdicts[:8:4]] == some[:2]
    assert sum(one.pair_right for one in verdicts) >= 18
    assert sum(one.view_near for one in verdicts) >= 14
    # Flat grey pictures have nothing between neighbours.
    assert script.apart(judge, torch.full_like(images, 0.5)) == pytest.approx(0, abs=1e-6)
    assert script.apart(judge, images) > 0.02


class Sees:
    """A judge that sees an angle: the unit vector of each picture's first number, in quarter turns."""

    def image_features(self, pictures: torch.Tensor) -> torch.Tensor:
        angle = pictures.flatten(1)[:, 0] * (torch.pi / 2)
        return torch.stack([angle.cos(), angle.sin()], dim=1)


def test_neighbouring_views_are_as_far_apart_as_by_hand() -> None:
    judge: Any = Sees()
    turns = torch.tensor(
        [0.0, 1.0, 1.0, 0.0]
    )  # two of the four steps around are quarter turns, with a cosine of 0
    assert neighbours(judge, turns.view(4, 1, 1, 1)) == pytest.approx(0.5)
    assert neighbours(judge, torch.ones(8, 3, 4, 4)) == pytest.approx(0.0, abs=1e-6)


def test_a_row_is_the_mean_over_prompts_of_the_mean_over_seeds(benchmark: Any) -> None:
    keys = [key for _, key in benchmark.FIGURES]
    rows = [
        {"loss": "sds", "way": "single", "prompt": prompt, **dict.fromkeys(keys, value)}
        for prompt, value in (("a mug", 0.0), ("a mug", 1.0), ("a duck", 1.0))
    ]
    line = benchmark.table(rows).splitlines()[-1]
    # (0.5 + 1) / 2, and a standard error of sqrt(0.125 / 2) = 0.25.
    assert line == "| sds | single | 3 | " + " | ".join(["0.750 ± 0.250"] * len(keys)) + " |"


def test_an_interrupted_benchmark_goes_on(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Assets that are there are not made again, and another budget is refused."""
    figures = {key: 0.25 for _, key in benchmark.FIGURES}
    for prompt in benchmark.ORIENTED[:2]:
        folder = benchmark.Cell("single", "sds", prompt, 0).folder(tmp_path)
        folder.mkdir(parents=True)
        made = {
            "way": "single",
            "loss": "sds",
            "prompt": prompt,
            "seed": 0,
            "overrides": {"iterations": 5, "prior": "embedded"},
        }
        made |= benchmark.measured_with(prompt, benchmark.SHAPES)
        (folder / "janus.json").write_text(json.dumps({**made, **figures}))
    words = [
        "janus.py",
        "--output",
        str(tmp_path),
        "--losses",
        "sds",
        "--prompts",
        "2",
        "--seeds",
        "1",
        "--ways",
        "single",
    ]
    monkeypatch.setattr(sys, "argv", [*words, "--iterations", "5"])
    benchmark.main()
    assert "| sds | single | 2 | 0.250 ± 0.000 |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*words, "--iterations", "6"])
    with pytest.raises(ValueError, match=r"was made with .*choose another --output"):
        benchmark.main()


@pytest.mark.parametrize("name", ["janus", "texturing"])
def test_an_asset_is_measured_again_by_another_judge(
    name: str, benchmark: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = benchmark if name == "janus" else importlib.import_module("texturing")
    prompt, options = benchmark.ORIENTED[0], {"iterations": 5}
    cell, generated = benchmark.Cell("single", "sds", prompt, 0), []
    folder = cell.folder(tmp_path)
    (folder / "asset").mkdir(parents=True)
    judges = module.measured_with(prompt, module.SHAPES if name == "janus" else module.KINDS)
    kept = {"seconds": 7.0, "train_seconds": 6.0, "overrides": options, "iou": 0.1, **judges}

    def generate(prompt: str, **options: Any) -> Any:
        generated.append(prompt)
        return SimpleNamespace(view=None, manifest={"seconds": {"train": 7.0}})

    monkeypatch.setattr(module.distill, "generate", generate)
    new = {"iou": 0.2, **judges}
    monkeypatch.setattr(module, "measure", lambda *_: (new, None) if name == "janus" else new)
    monkeypatch.setattr(module, "save_strip", lambda *_: None)

    def make() -> Any:
        return (
            module.make(cell, tmp_path, options)
            if name == "janus"
            else module.make(prompt, folder, options, generate)
        )

    (folder / f"{name}.json").write_text(json.dumps(kept))
    assert make()["iou"] == 0.1 and not generated
    (folder / f"{name}.json").write_text(json.dumps(kept | {"judge": "another"}))
    again = make()
    assert (again["iou"], again["seconds"], again["judge"]) == (0.2, 7.0, judges["judge"]) and len(
        generated
    ) == 1
    assert name == "janus" or again["train_seconds"] == 6.0
    assert make()["iou"] == 0.2 and len(generated) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--losses", "sds,foo"], "--losses are sds, csd, asd, vsd, got foo"),
        (["embedded"], "expected a prior of four views, whose network is given cameras, got embedded"),
        (["--ways", "two"], "--ways are single, four, one, got two"),
        (["--prompts", "10"], "--prompts is 1 to 9, and --seeds and --iterations are at least 1"),
        (["--seeds", "0"], "--prompts is 1 to 9, and --seeds and --iterations are at least 1"),
    ],
)
def test_wrong_options_are_one_line(
    words: list[str],
    said: str,
    benchmark: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["janus.py", *words])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert capsys.readouterr().err.strip().splitlines()[-1].endswith(said)
