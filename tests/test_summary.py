"""One table over all runs in a folder: what it reads, its order, its files, and wrong folders."""

from __future__ import annotations

import csv
import json
import re
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import pytest
import yaml
from omegaconf import OmegaConf
from PIL import Image

from distill.cli import main
from distill.export.thumbnail import draw
from distill.run.config.compose import compose_words, composing
from distill.run.folder.differences import entries, told_apart
from distill.run.folder.settings import text_of
from distill.run.folder.summary import Run, as_text, folders, head, summarise


def run_in(
    folder: Path, manifest: dict[str, Any] | None = None, config: str = "", finished: bool = False
) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        config or "prompt: a red mug\nseed: 5\nimage: null\niterations: 400\n"
    )
    if manifest is not None:
        (folder / "manifest.json").write_text(json.dumps(manifest))
    if finished:
        (folder / "report.html").write_text("<!doctype html>")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One of each kind."""
    root = tmp_path / "outputs"
    made = {
        "prompt": "a blue cube",
        "seed": 0,
        "iterations": 400,
        "score": 0.5,
        "seconds": {"load": 1.0, "train": 2.25},
    }
    seeds = [
        {"folder": "seed-0", "state": "collapsed", "why": "empty"},
        {"folder": "seed-1", "state": "finished"},
    ]
    best = run_in(root / "cube", {**made, "seeds": seeds}, finished=True)
    run_in(best / "seed-1", made, finished=True)
    sheet = Image.new("RGB", (4 * 16 + 12, 2 * 16 + 4), "white")
    sheet.paste((255, 0, 0), (0, 0, 16, 16))
    sheet.save(best / "contact.png")
    half = run_in(
        root / "half",
        config='prompt: "a\n\n  mug"\nseed: 5\niterations: 400\nviews:\n  seed: 9\nguidance:\n  _target_: distill.guidance.vsd.VSD\n  scale: 7.5\n',
    )
    (half / "metrics.jsonl").write_text('{"step": 0}\n{"step": 118}\n{"step": 1')
    failed = {
        "prompt": "a <b>fog</b>",
        "seed": 1,
        "iterations": 400,
        "step": 120,
        "seconds": {"train": 9.0},
        "guidance": "csd",
    }
    run_in(root / "sweeps/1/fog", {**failed, "state": "collapsed", "why": "full, for long"})
    run_in(root / "pink", {**failed, "prompt": "a pink cone", "state": "failed", "why": "no surface"})
    (root / "batch.csv").write_text(
        "prompt,state,folder,seconds\na dragon,does not know,,0.0\na pink cone,no surface,outputs/pink,9.0\na blue cube,finished,x,3\n"
    )
    return root


def test_every_run_has_its_line_and_what_failed_comes_first(root: Path) -> None:
    runs, page = summarise(root)
    assert runs == [
        Run("a pink cone", 1, "failed", None, 9.0, "120/400", "pink", "no surface", "csd"),
        Run("a <b>fog</b>", 1, "collapsed", None, 9.0, "120/400", "sweeps/1/fog", "full, for long", "csd"),
        Run("a dragon", None, "refused", None, None, "", "", "does not know"),
        Run("a\nmug", 5, "unfinished", None, None, "119/400", "half", "", "vsd"),
        Run("a blue cube", 0, "finished", 0.5, 3.2, "400/400", "cube", "seed-0: empty"),
    ]
    rows = list(csv.DictReader((root / "summary.csv").open(newline="")))
    assert [row["prompt"] for row in rows] == [run.prompt for run in runs]
    assert rows[1] == {
        "prompt": "a <b>fog</b>", "seed": "1", "state": "collapsed", "score": "", "seconds": "9.0", "steps": "120/400",
        "folder": "sweeps/1/fog", "why": "full, for long", "guidance": "csd", "options": "",
    }  # fmt: skip
    assert page == root / "summary.html"


def test_runs_of_one_prompt_are_told_apart_by_the_options_that_differ(tmp_path: Path) -> None:
    def config(scale: str, seed: int, scene: str, more: str = "") -> str:
        return (
            f"prompt: a red mug\nseed: {seed}\nimage: null\niterations: 400\nnegative_prompt: 'so\n\n  long: a text'\n"
            f"guidance:\n  _target_: distill.guidance.sds.sds\n  scale: {scale}\nexport:\n  formats:\n  - glb\n{more}  size_m: null\n"
            f"scene:\n  _target_: distill.renderers.{scene}\n  levels: 12\n"
        )

    root = tmp_path / "sweep"
    run_in(root / "a", config=config("5", 0, "nerf.HashGridScene"))
    run_in(root / "b", config=config("7.5", 1, "nerf.HashGridScene"))
    run_in(root / "c", config=config("5", 2, "sdf.SDFScene", "  - obj\n").replace("levels", "other"))
    run_in(root / "d", config=config("9", 3, "nerf.HashGridScene").replace("mug", "car"))
    runs, page = summarise(root)
    said = {run.folder: run.options for run in runs}
    assert said == {
        "a": "guidance.scale=5 export.formats=[glb] scene=HashGridScene",
        "b": "guidance.scale=7.5 export.formats=[glb] scene=HashGridScene",
        "c": "guidance.scale=5 export.formats=[glb, obj] scene=SDFScene",
        "d": "",
    }
    assert "guidance.scale=7.5" in as_text(runs) and "<p>guidance.scale=7.5" in page.read_text()
    assert "options" not in as_text(runs[:1])
    assert [row["options"] for row in csv.DictReader((root / "summary.csv").open(newline=""))] == [
        run.options for run in runs
    ]


def test_a_number_and_a_schedule_are_told_apart() -> None:
    runs = [
        {"guidance.scale": "5", "cameras.distance": "[3, 4]"},
        {"guidance.scale.start": "5", "guidance.scale.end": "2", "cameras.distance": "[3, 4]"},
    ]
    assert told_apart(runs) == ["guidance.scale=5", "guidance.scale={start: 5, end: 2}"]
    assert told_apart([runs[0], {}]) == ["", ""] and told_apart([]) == []


def test_the_printed_options_reach_to_the_last_that_differs(tmp_path: Path) -> None:
    for number, rate in enumerate((0.01, 0.02)):
        text = f"prompt: a\nseed: {number}\niterations: {number}\nguidance:\n  scale: {number}\n  weighting: w{number}\nscene:\n  encoding_lr: {rate}\n"
        run_in(tmp_path / "runs" / str(number), config=text)
    said = as_text(summarise(tmp_path / "runs")[0])
    assert "scene.encoding_lr=0.01 " in said and "scene.encoding_lr=0.02 " in said


def test_the_options_of_a_configuration_are_those_that_yaml_reads() -> None:
    words = ["prompt='a red mug, of old: 1970'", "guidance=vsd", "scene=sdf", "export.formats=[glb,obj]"]
    with composing():
        config, _ = compose_words(words)
    found = entries(OmegaConf.to_yaml(config))

    def flat(value: Any, name: str = "") -> dict[str, Any]:
        if not isinstance(value, dict) or not value:
            return {name: value}
        return {
            key: own
            for part, more in value.items()
            for key, own in flat(more, f"{name}.{part}".strip(".")).items()
        }

    true = flat(OmegaConf.to_container(config))
    assert len(true) > 150 and set(found) == set(true)
    assert all(yaml.safe_load(found[name]) == value for name, value in true.items())


def test_the_page_needs_nothing_else_and_shows_text_as_text(root: Path) -> None:
    page = summarise(root)[1].read_text()
    assert "default-src 'none'" in page and not re.search(r"(?:src|href)=\"?(?:https?:|//)", page)
    assert "a &lt;b&gt;fog&lt;/b&gt;" in page and "<b>fog" not in page
    assert ", seed 1, csd</p>" in page
    assert page.count("data:image/jpeg;base64,") == 1 and 'href="cube/report.html"' in page
    assert "5 runs: 1 finished, 1 unfinished, 1 refused, 1 collapsed, 1 failed" in page
    assert [int(i) for i in re.findall(r'data-index="(\d)"', page)] == [1, 2, 3, 4, 5]


def test_one_run_is_counted_in_the_singular(tmp_path: Path) -> None:
    run_in(tmp_path / "mug", {"prompt": "a mug", "seed": 0, "iterations": 4}, finished=True)
    assert ">1 run: 1 finished<" in summarise(tmp_path)[1].read_text()


def test_links_lead_to_folders_of_any_name(tmp_path: Path) -> None:
    made = {"prompt": "a mug", "seed": 0, "iterations": 4}
    names = ["100% #1", "a?b&c", "http:x", "ein Krug ü", 'a"b']
    for name in names:
        run_in(tmp_path / "sweep" / name, made, finished=True)
        run_in(tmp_path / name, made, finished=True)
    links = re.findall(r'href="([^"]*)"', summarise(tmp_path)[1].read_text())
    assert len(links) == 2 * len(names)
    base = (tmp_path / "summary.html").as_uri()
    found = {Path(unquote(urlsplit(urljoin(base, unescape(link))).path)) for link in links}
    assert found == {tmp_path / parent / name / "report.html" for name in names for parent in ("", "sweep")}


def test_the_text_is_short_and_counts_all(root: Path) -> None:
    lines = as_text(summarise(root)[0], most=2).splitlines()
    assert lines[0].split() == [
        "prompt",
        "seed",
        "guidance",
        "state",
        "score",
        "seconds",
        "steps",
        "folder",
        "why",
    ]
    assert lines[1].split() == [
        "a",
        "pink",
        "cone",
        "1",
        "csd",
        "failed",
        "9.0",
        "120/400",
        "pink",
        "no",
        "surface",
    ]
    assert lines[3:] == ["and 3 more", "1 finished, 1 unfinished, 1 refused, 1 collapsed, 1 failed"]


def test_the_thumbnail_is_the_front_of_the_contact_sheet(root: Path, tmp_path: Path) -> None:
    (tmp_path / "front.jpg").write_bytes(draw(root / "cube"))
    with Image.open(tmp_path / "front.jpg") as front:
        assert front.size == (16, 16)
        pixel = front.convert("RGB").getpixel((8, 8))
    assert isinstance(pixel, tuple) and pixel[0] > 240 and pixel[1] < 15
    assert draw(root / "half") == b""
    (root / "half/previews").mkdir()
    (root / "half/previews/step-000100.png").write_bytes(b"no picture")
    assert draw(root / "half") == b""


def test_a_configuration_s_first_lines_are_enough(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    from distill.run.config.compose import compose_config

    for prompt in ("a red mug", "a: {b} # 'c' \"d\"", "many words " * 30, "ein schöner Becher 🫖"):
        config = compose_config(["prompt=x", "seed=7", "iterations=9", "prior=gone"])
        config.prompt = prompt
        (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(config))
        wanted = {"prompt": prompt, "seed": 7, "seeds": 1, "image": None, "iterations": 9}
        wanted["guidance"] = OmegaConf.to_container(config.guidance)
        assert head(text_of(tmp_path)) == wanted
    assert head(text_of(tmp_path / "gone")) == {}


def test_many_runs_are_one_page(tmp_path: Path) -> None:
    manifest = json.dumps({"prompt": "a red mug", "seed": 0, "iterations": 4, "seconds": {"train": 1.0}})
    for number in range(1000):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}/manifest.json").write_text(manifest)
        (tmp_path / f"{number}/report.html").touch()
    assert len(list(folders(tmp_path))) == len(summarise(tmp_path)[0]) == 1000
    assert (tmp_path / "summary.html").read_text().count('class="card finished"') == 1000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gone"], "needs a folder with runs, such as outputs/, and gone is none"),
        ([], "and outputs is none"),
        (["file"], "and file is none"),
        (["empty"], "empty holds no run: no folder in it has a config.yaml or a manifest.json"),
        (["empty", "gone"], "summary takes one folder, such as outputs/, got empty gone"),
    ],
)
def test_a_wrong_folder_is_one_line(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty/inner").mkdir(parents=True)
    Path("file").touch()
    with pytest.raises(SystemExit) as ended:
        main(["summary", *arguments])
    error = capsys.readouterr().err
    assert (
        ended.value.code == 2
        and error.startswith("distill: error:")
        and said in error
        and error.count("\n") == 1
    )
    assert not Path("empty/summary.csv").exists()
