"""What is said of a slip: in one line, in plain words, with the remedy, and before anything is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import distill
from distill import cli
from distill.conditions.cutout import LEAST, without_background
from distill.files.atomic import replacing, write_atomic
from distill.files.errors import first_line, line_of
from distill.run.config.compose import compose_config
from distill.run.config.mistakes import takes_list
from distill.run.config.overrides import as_overrides
from distill.usage import USAGES
from distill.wording import aligned, counted

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command line is refused with."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1
    return said.strip()


@pytest.mark.parametrize(
    "slip",
    ["sed=1", "export.foo=1", "guidance.scal=3", "guidance.formula=1", "++guidance.foo=1", "zzzzzzzz.q=1"],
)
def test_a_mistyped_option_is_told_what_lists_them_all(slip: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = error_of(["prompt=a red mug", slip], capsys)
    assert said.endswith("'distill --options' lists all options") and "?;" not in said


@pytest.mark.parametrize(
    "several",
    [
        "seed=0,1", "guidance=sds,csd", "guidance.scale=1,2", "resume=true,false", "shard=1/2,2/2", "seed=range(3)",
        "seed=choice(1,2)", "preset=a,b", "+experiment=a,b", "prior=embedded,things", "image=a.png,b.png", "judge=a,b",
    ],
)  # fmt: skip
def test_several_values_of_one_option_are_a_sweep(several: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, _, values = several.lstrip("+").partition("=")
    said = error_of(["a red mug", several], capsys)
    assert said.startswith(f"distill: error: {name} takes one value, got {values};")
    assert said.endswith(f'which -m starts: distill "PROMPT" -m {name}={values}') and "list" not in said


def test_an_option_that_takes_a_list_says_how_one_is_written() -> None:
    with pytest.raises(
        ValueError, match=r"betas takes one list, .*; as a list, write optimiser.betas=\[0.9,0.99\]; .* -m"
    ):
        compose_config(["prompt=a red mug", "optimiser.betas=0.9,0.99"])
    assert [takes_list(name) for name in ("perp_neg.front_from_side", "mesh.keep", "seed", "render", "no.such")] == [
        True, True, False, False, False,
    ]  # fmt: skip


def test_a_file_with_a_comma_in_its_name_is_one_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a,b.png"
    path.write_bytes(b"no picture")
    assert "cannot be read" in error_of([f"image={path}"], capsys)


@pytest.mark.slow
@pytest.mark.parametrize("value", ["", None])
def test_an_empty_variable_is_as_good_as_none(value: str | None, tmp_path: Path) -> None:
    environment = {name: text for name, text in ENVIRONMENT.items() if name != "HYDRA_FULL_ERROR"}
    environment |= {} if value is None else {"HYDRA_FULL_ERROR": value}
    found = subprocess.run(
        [sys.executable, "-m", "distill", "a red mug", "hydra.nope=1"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 2
    assert found.stderr.splitlines() == [
        "distill: error: unknown option 'hydra.nope'; 'distill --options' lists all options"
    ]


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(2), torch.tensor(3), np.zeros((4, 4, 3)), [torch.tensor(1.0)], {"start": torch.tensor(1.0), "end": 0}, object(),
        {1, 2}, b"x", 1j, iter([1]), float,
    ],
)  # fmt: skip
def test_a_value_that_no_option_has_is_told_which_types_there_are(value: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^an option's value is text, a path, a number, .* for renderer\.x"
    ) as caught:
        distill.generate("a red mug", **{"renderer.x": value})
    assert "\n" not in str(caught.value) and "quote" not in str(caught.value)


def test_numbers_of_numpy_and_lists_of_omegaconf_are_values() -> None:
    values = {
        "a": np.int64(2),
        "b": np.float32(0.5),
        "c": np.bool_(True),
        "d": OmegaConf.create([1, "x"]),
        "e": Path("p"),
        "f": None,
    }
    assert as_overrides(values) == ["a=2", "b=0.5", "c=True", "d=[1,'x']", "e='p'", "f=null"]


@pytest.mark.parametrize(
    "prompt", [None, 3, True, b"a red mug", ["a red mug"], Path("mug"), torch.zeros(2, 2)]
)
def test_a_prompt_that_is_no_text_is_refused(prompt: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^the prompt must be text .*, got .*image=FILE.*prompts=FILE"
    ) as caught:
        distill.generate(prompt)
    assert repr(prompt).split("\n")[0] in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(1, 1), (LEAST - 1, 64), (64, LEAST - 1), (8, 8)])
@pytest.mark.parametrize("background", ["auto", "keep"])
def test_a_picture_that_is_too_small_is_refused_before_the_model_is_loaded(
    size: tuple[int, int], background: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr("distill.priors.novel_view.pipeline.NovelViewPipeline.load", load)
    Image.new("RGBA", size, (255, 0, 0, 255)).save(tmp_path / "small.png")
    said = (
        rf"at least {LEAST} x {LEAST} pixels, got {size[0]} x {size[1]} in .*small.png; give a larger picture"
    )
    with pytest.raises(ValueError, match=said):
        distill.generate(
            "",
            image=tmp_path / "small.png",
            output_dir=tmp_path / "run",
            **{"reference.background": background},
        )
    assert not (tmp_path / "run").exists()


def test_a_picture_of_the_least_size_is_taken(tmp_path: Path) -> None:
    Image.new("RGBA", (LEAST, LEAST), (255, 0, 0, 255)).save(tmp_path / "least.png")
    assert without_background(tmp_path / "least.png", "keep").size == (LEAST, LEAST)


def write_text(path: Path) -> None:
    write_atomic(path, "text")


def write_replacing(path: Path) -> None:
    with replacing(path) as part:
        part.write_text("text")


@pytest.mark.parametrize("write", [write_text, write_replacing])
def test_what_cannot_be_written_is_named_as_it_was_given(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    (tmp_path / "folder.glb").mkdir()
    for path, kind in (
        (tmp_path / "nowhere" / "x.glb", FileNotFoundError),
        (tmp_path / "folder.glb", IsADirectoryError),
        (tmp_path / f"{'n' * 300}.glb", OSError),
    ):
        with pytest.raises(kind) as caught:
            write(path)
        assert caught.value.filename == str(path) and caught.value.filename2 is None
        assert line_of(caught.value) == f"{path}: {caught.value.strerror}"
    assert [path.name for path in tmp_path.iterdir()] == ["folder.glb"]


@pytest.mark.parametrize("write", [write_text, write_replacing])
def test_what_takes_a_name_is_on_the_disk_before(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power failure may leave an empty file in a run whose report says that it is finished."""
    done: list[tuple[str, int]] = []
    sync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        done.append(("sync", os.fstat(descriptor).st_size))
        sync(descriptor)

    def replaced(old: Path, new: Path) -> None:
        done.append(("replace", old.stat().st_size))
        replace(old, new)

    monkeypatch.setattr("distill.files.atomic.os.fsync", synced)
    monkeypatch.setattr("distill.files.atomic.os.replace", replaced)
    write(tmp_path / "mesh.glb")
    assert done == [("sync", 4), ("replace", 4)]


def test_a_full_disk_names_the_file_and_no_number(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space") as caught, replacing(tmp_path / "mesh.glb"):
        raise OSError(28, "No space left on device")
    assert line_of(caught.value) == f"{tmp_path / 'mesh.glb'}: No space left on device"
    assert line_of(RuntimeError("I/O error: File too large (os error 27)")) == "I/O error: File too large"
    with pytest.raises(OSError, match="other") as other, replacing(tmp_path / "mesh.glb"):
        raise FileNotFoundError(2, "No such file or directory", "other")
    assert other.value.filename == "other"


@pytest.mark.parametrize(
    ("said", "line"), [("a", "a"), ("a\nb", "a"), ("\n  a \nb", "a"), ("", "KeyError"), (" \n", "KeyError")]
)
def test_of_what_another_library_says_the_first_line_is_told_or_the_errors_kind(said: str, line: str) -> None:
    assert first_line(type("KeyError", (RuntimeError,), {})(said)) == line


def test_the_command_line_says_a_systems_error_in_plain_words(capsys: pytest.CaptureFixture[str]) -> None:
    cli._fail(OSError(28, "No space left on device", "mesh.glb"))
    assert capsys.readouterr().err == "distill: error: mesh.glb: No space left on device\n"


@pytest.mark.parametrize("command", USAGES)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_each_command_has_its_own_help(command: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, flag])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and said.startswith(f"usage: distill {command} ") and said.count("\n") < 20
    assert said.splitlines()[-1].startswith(f"example: distill {command} ")
    assert all(f"  {option} " in said for option in (*USAGES[command].options, "--help"))
    assert f"distill {command} " in cli.HELP


@pytest.mark.parametrize(("count", "said"), [(0, "0 steps"), (1, "1 step"), (2, "2 steps")])
def test_one_is_singular(count: int, said: str) -> None:
    assert counted(count, "step") == said


def test_a_tables_columns_are_as_wide_as_their_widest_cells() -> None:
    assert aligned([("a", "bcd", "e"), ("fghi", "", "jk"), ("l", "m", "")]) == [
        "a     bcd  e",
        "fghi       jk",
        "l     m",
    ]


def test_a_warning_stands_on_a_line_of_its_own_above_the_bar() -> None:
    code = (
        "import logging, sys, warnings\nfrom tqdm import tqdm\nfrom distill import cli\ncli._quieten()\n"
        "with tqdm(total=2, desc='distilling', file=sys.stderr) as bar:\n"
        "    warnings.warn('look out')\n    logging.getLogger('distill').info('by the way')\n    bar.update(2)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    shown = found.stderr.split("\n")
    # A carriage return begins a line again, so what stands is what follows the last one.
    for said in ("look out", "by the way"):
        (line,) = (line.rpartition("\r")[2] for line in shown if said in line)
        assert "distilling" not in line
    assert "2/2" in shown[-2]


def test_no_bar_is_shown_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    from distill.lab.novel_view.world_renders import on_cores

    assert list(on_cores(str, [], 1, "object")) == [] and capsys.readouterr().err == ""
    assert list(on_cores(str, [3], 1, "object")) == ["3"] and "1/1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, "1000 None"),
        ({"GOMP_SPINCOUNT": "5"}, "5 None"),
        ({"OMP_WAIT_POLICY": "active"}, "None active"),
    ],
)
def test_threads_are_told_to_share_the_cores_before_torch_is_there(given: dict[str, str], found: str) -> None:
    """OpenMP reads its variables when it is loaded; what the environment says of it stays."""
    code = (
        "import os, sys\nfrom distill import cli\n"
        "class Last:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'torch':\n"
        "            print(*map(os.environ.get, ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY')), flush=True)\n"
        "            os._exit(7)\n"
        "sys.meta_path.insert(0, Last())\n"
        "cli.main(['a red mug', 'iterations=1'])\n"
    )
    plain = {
        name: text for name, text in ENVIRONMENT.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=plain | given, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (7, found), done.stderr
