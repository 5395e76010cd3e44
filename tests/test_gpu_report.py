"""The GPU report: what it runs, writes, skips and survives; and what is packed for a machine without an index."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "examples" / "benchmarks" / "gpu"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Imports a script of the folder, and what it imports."""
    for folder in (FOLDER.parents[1] / "embedded", FOLDER.parent, FOLDER):
        monkeypatch.syspath_prepend(str(folder))
    return importlib.import_module


def dry(scripts: Callable[[str], Any], output: Path) -> dict[str, Any]:
    """Run all parts on the CPU; returns their tables, once all are finished and the files are as they should be."""
    report = scripts("report")
    command = [sys.executable, str(FOLDER / "report.py"), "--dry", "--output", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + (output / "log.txt").read_text()[-2000:]
    found = json.loads((output / "report.json").read_text())
    assert {name: part["outcome"] for name, part in found["parts"].items()} == dict.fromkeys(
        report.PARTS, "finished"
    )
    files = [path for path in output.rglob("*") if path.is_file()]
    assert len(files) <= 8
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", path.name) and path.stat().st_size < 2**24 for path in files)
    assert (output / "report.md").read_text().startswith(f"# {found['hardware']}\n")
    return {name: part["tables"] for name, part in found["parts"].items()}


@pytest.mark.slow
def test_every_part_runs_on_the_cpu(scripts: Callable[[str], Any], tmp_path: Path) -> None:
    """In one test, for a process that imports what they need takes longer than most of them."""
    tables = dry(scripts, tmp_path / "out")
    # By hand and by this library: the same gradient, up to the layout in memory, from the same pictures.
    by = {row["who"]: row for row in tables["diffusers"]["SDS's gradient, Stable Diffusion 1.5's size"]}
    assert by["diffusers"]["gradient, relative difference"] == 0
    assert by["distill, kernel by kernel"]["gradient, relative difference"] < 1e-4
    (profiled,) = tables["profile"]["A step of the main job"]
    assert 0 < profiled["device busy ms"] < profiled["wall ms under the profiler"]
    assert all(row["finite"] for row in tables["vae"]["Encoding a picture"])
    for row in tables["steps"]["Steps at Stable Diffusion 1.5's size"]:
        assert row["step / network"] == pytest.approx(row["step ms"] / row["network ms"], rel=0.01)
        assert row["at most, forecast GiB"] > row["first step, forecast GiB"] > 0
    assert {row["outcome"] for row in tables["tests"]["Tests"]} <= {"skipped", "passed"}
    (asset,) = tables["asset"]["Assets"]
    assert asset["seconds"] >= asset["training"] > 0
    assert 0 <= asset["iou"] <= 1
    (sphere,) = tables["quality"]["Assets"]
    assert (sphere["prompt"], sphere["on the CPU"], sphere["IoU on the CPU"]) == ("a blue sphere", 1.0, 0.981)


def fake(name: str, scripts: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, code: str) -> Any:
    """A report of parts that are Python code."""
    report = scripts("report")
    monkeypatch.setattr(report, "hardware", lambda device: "H")
    monkeypatch.setattr(report, "PARTS", {"a": ("", 20.0), "slow": ("", 2.0), "b": ("", 20.0)})
    real = report.run_part

    def run_part(command: list[str], *rest: Any) -> str:
        part = command[command.index("--one") + 1]
        return str(real([sys.executable, "-c", code, part], *rest))

    monkeypatch.setattr(report, "run_part", run_part)
    return report


def test_a_part_that_fails_or_hangs_is_told_and_the_rest_goes_on(
    scripts: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = (
        "import sys, time, pathlib\n"
        f"here = pathlib.Path({str(tmp_path)!r}); part = sys.argv[1]\n"
        "print('in', part, file=(here / 'ran').open('a'))\n"
        "if part == 'slow': time.sleep(60)\n"
        "if part == 'a' and not (here / 'mended').exists(): raise ValueError('no | bolt')\n"
    )
    report = fake("a", scripts, monkeypatch, code)
    out, work = tmp_path / "out", tmp_path / "work"
    assert not report.report(["a", "slow", "b"], out, work, "cpu", False, 60.0)
    state = json.loads((out / "report.json").read_text())["parts"]
    assert [state[name]["outcome"] for name in state] == ["failed", "failed", "finished"]
    assert state["a"]["error"] == "exit code 1: ValueError: no | bolt"
    assert state["slow"]["error"] == "stopped after 2 s"
    assert "| a | failed |" in (out / "report.md").read_text()
    assert r"ValueError: no \| bolt" in (out / "report.md").read_text()
    (tmp_path / "mended").touch()
    assert report.report(["a", "b"], out, work, "cpu", False, 60.0)
    assert (tmp_path / "ran").read_text().split() == ["in", "a", "in", "slow", "in", "b", "in", "a"]
    # What no time is left for is told, too.
    assert not report.report(["slow"], out, work, "cpu", False, 0.0)
    assert json.loads((out / "report.json").read_text())["parts"]["slow"]["error"] == "no time was left"


def test_rows_are_on_disk_at_once_and_make_a_table(scripts: Callable[[str], Any], tmp_path: Path) -> None:
    record = scripts("record")
    found = record.Record(tmp_path / "part.json")
    found.row("T", {"loss": "sds", "ms": 12.3456})
    assert json.loads((tmp_path / "part.json").read_text())["tables"] == {
        "T": [{"loss": "sds", "ms": 12.3456}]
    }
    found.row("T", {"loss": "a|b", "learner": None, "more": True})
    assert record.markdown(found.tables["T"]) == (
        "| loss | ms | learner | more |\n| --- | --- | --- | --- |\n| sds | 12.35 |  |  |\n| a\\|b |  |  | True |"
    )


def test_busy_time_counts_what_overlaps_once(scripts: Callable[[str], Any]) -> None:
    profiling = scripts("profiling")
    assert profiling.covered([(0, 4), (2, 5), (7, 9), (8, 8.5)]) == 7
    assert profiling.covered([]) == 0
    kind = torch.autograd.DeviceType.CUDA
    events = [SimpleNamespace(device_type=kind, name=name) for name in ("gemm", "Optimizer.step#Adam.step")]
    assert [event.name for event in profiling.kernels(events, kind)] == ["gemm"]


def test_launches_are_calls_that_queue_work(scripts: Callable[[str], Any]) -> None:
    names = {
        "cudaLaunchKernelExC": 5,
        "cudaGraphLaunch": 1,
        "cuLaunchKernel": 2,
        "cudaStreamSynchronize": 9,
        "aten::mm": 7,
    }
    averages = [SimpleNamespace(key=name, count=count) for name, count in names.items()]
    assert scripts("profiling").launches(averages) == 8


def test_the_cpus_quality_is_read_from_the_documentation(scripts: Callable[[str], Any]) -> None:
    sixteen = scripts("sixteen")
    found = sixteen.documented(sixteen.DOCUMENTED.read_text())
    assert len(found) == 16
    assert found["a brown mug"] == (0.625, 0.895)


def test_sixteen_assets_are_made_by_eight_processes_and_told_as_they_come(
    scripts: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The dry run makes one in its own process; here the processes leave what one that makes assets leaves."""
    sixteen = scripts("sixteen")
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(
        "import json, pathlib, sys\n"
        "words = sys.argv[1:]\n"
        "assert words[0] == '--work' and words[2:5] == ['--device', 'cpu', '--prompts'], words\n"
        "for prompt in words[5:]:\n"
        "    folder = pathlib.Path(words[1]) / prompt.replace(' ', '-')\n"
        "    folder.mkdir(parents=True)\n"
        "    made = {'r_precision': len(words[5:]) / 4, 'iou': 0.25, 'azimuth_offset_deg': 3.0}\n"
        "    (folder / 'part').write_text(json.dumps(made))\n"
        "    (folder / 'part').rename(folder / 'quality.json')\n"
        "sys.exit('a red cube' in words and pathlib.Path(words[1], 'fail').exists())\n"
    )
    monkeypatch.setattr(sixteen, "__file__", str(stand_in))
    record = scripts("record").Record(tmp_path / "part.json")
    sixteen.run(record, tmp_path, tmp_path, torch.device("cpu"), False)
    rows = record.tables["Assets"]
    assert {row["prompt"] for row in rows} == set(scripts("quality").PROMPTS)
    # Each of the eight was given two of the sixteen.
    assert all((row["R-precision@1"], row["IoU"], row["turned by"]) == (0.5, 0.25, 3.0) for row in rows)
    assert record.notes == [
        "R-precision@1: a mean of 0.500 over 16 assets.",
        "IoU: a mean of 0.250 over 16 assets.",
    ]
    for folder in (tmp_path / "quality").iterdir():
        shutil.rmtree(folder)
    (tmp_path / "quality" / "fail").touch()
    with pytest.raises(SystemExit, match="16 of 16 assets were made"):
        sixteen.run(
            scripts("record").Record(tmp_path / "more.json"), tmp_path, tmp_path, torch.device("cpu"), False
        )


def test_an_asset_of_the_sixteen_is_made_as_the_process_is_told(
    scripts: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sixteen, told = scripts("sixteen"), list[Any]()
    monkeypatch.setattr(sixteen.quality, "make", lambda *words: told.append(words))
    words = ["--work", str(tmp_path), "--device", "cuda", "--prompts", "a blue sphere", "a red cube"]
    monkeypatch.setattr(sys, "argv", ["sixteen.py", *words])
    sixteen.main()
    assert [(prompt, folder.name) for prompt, folder, *_ in told] == [
        ("a blue sphere", "a-blue-sphere"),
        ("a red cube", "a-red-cube"),
    ]
    assert all(more[0]["device"] == "cuda" and "iterations" not in more[0] for _, _, *more in told)


@pytest.mark.parametrize(("options", "parameters"), [("SDXL", 2_567_463_684), ("FLUX", 11_901_408_320)])
def test_large_networks_have_the_published_size(
    scripts: Callable[[str], Any], options: str, parameters: int
) -> None:
    import diffusers

    kind = {"SDXL": diffusers.UNet2DConditionModel, "FLUX": diffusers.FluxTransformer2DModel}[options]
    with torch.device("meta"):
        network = kind(**getattr(scripts("large"), options))
    assert sum(p.numel() for p in network.parameters()) == parameters


def entry(kind: int, architecture: int, payload: bytes) -> bytes:
    head = struct.pack("<HHIQ", kind, 257, 64, len(payload)) + bytes(12) + struct.pack("<I", architecture)
    return head + bytes(64 - len(head)) + payload


def test_only_one_gpus_machine_code_is_packed(scripts: Callable[[str], Any], tmp_path: Path) -> None:
    pack = scripts("pack")
    programs = entry(1, 75, b"ptx!" * 8) + entry(2, 80, b"ampe" * 8) + entry(2, 90, b"hopp" * 8)
    container = struct.pack("<IHHQ", pack.FATBIN, 1, 16, len(programs)) + programs
    library = tmp_path / "library.so"
    noise = os.urandom(6 * 2**20)
    library.write_bytes(b"code" * 2**14 + container + bytes(2**16) + noise)
    gone = pack.strip(library, 90)
    data = library.read_bytes()
    assert b"hopp" * 8 in data and b"ampe" not in data and b"ptx!" not in data
    assert data.startswith(b"code" * 2**14)
    # Of the noise, all but what shares a block of 64 KiB with something else.
    assert 64 + 6 * 2**20 - 2**17 <= gone <= 64 + 6 * 2**20
    with pytest.raises(ValueError, match="no machine code for sm_70"):
        pack.strip(library, 70)


def test_uploads_are_filled_in_order_and_pieces_make_the_whole(
    scripts: Callable[[str], Any], tmp_path: Path
) -> None:
    pack = scripts("pack")
    sizes = {"site": 9, "a": 7, "b": 7, "c": 7, "d": 7, "e": 2}
    assert pack.uploads(sizes, 23) == [["site", "a", "b"], ["c", "d", "e"]]
    assert pack.uploads(sizes, 22) == [["site", "a"], ["b", "c", "d"], ["e"]]
    with pytest.raises(
        ValueError, match="site has 9 bytes and an upload has room for 8; choose a larger --upload, or"
    ):
        pack.uploads(sizes, 8)
    archive = tmp_path / "warp.tar.xz"
    archive.write_bytes(data := os.urandom(1000))
    (tmp_path / "warp.tar.xz.09").write_bytes(b"of an earlier, longer one")
    pieces = pack.split(archive, 400)
    assert [path.name for path in pieces] == [f"warp.tar.xz.0{i}" for i in range(3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(path.name for path in pieces),
        "warp.tar.xz.sha256",
    ]
    assert b"".join(path.read_bytes() for path in pieces) == data
    assert (tmp_path / "warp.tar.xz.sha256").read_text().strip() == hashlib.sha256(data).hexdigest()


def test_weights_travel_apart_from_a_checkout_that_would_not_fit_with_them(
    scripts: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pack, root, packed = scripts("pack"), tmp_path / "checkout", tmp_path / "packed"
    packed.mkdir()
    sizes = {"prior/unet/a": 2**20, "things/judge/b": 2**20 + 7, "things/prior/c": 2**19}
    for name, size in sizes.items():
        path = root / f"distill/embedded/{name}.safetensors"
        path.parent.mkdir(parents=True)
        path.write_bytes(os.urandom(size))
    (root / "setup.cfg").write_bytes(bytes(2**18))

    def git(*words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", root, *who, *words], check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(pack, "ROOT", root)
    archives = pack.pack_weights(packed)
    assert [path.name for path in archives] == ["weights-prior.tar", "weights-things.tar"]
    pack.share_out(packed, 3)  # 2 MiB less the 0.25 of the checkout: 1.75, for 1 and 1.5 and what tar adds
    said = capsys.readouterr().out
    assert "0.25 MiB in the checkout without its weights" in said
    assert "upload-1: weights-prior.tar\n" in said and "upload-2: weights-things.tar\n" in said
    assert [sorted(path.name for path in (packed / f"upload-{n}").iterdir()) for n in (1, 2)] == [
        ["weights-prior.tar"],
        ["weights-things.tar"],
    ]
    pack.gather(packed)
    assert sorted(packed.iterdir()) == archives
    with pytest.raises(
        ValueError, match=r"weights-prior.tar has \d+ bytes and an upload has room for 786432"
    ):
        pack.share_out(packed, 2)
    there = tmp_path / "there"
    there.mkdir()
    for archive in archives:
        with tarfile.open(archive) as file:
            file.extractall(there, filter="data")
    for name in sizes:
        inside = f"distill/embedded/{name}.safetensors"
        assert (there / inside).read_bytes() == (root / inside).read_bytes()
        (root / inside).unlink()
    assert len(pack.pack_weights(packed)) == 2  # they have been taken out for an upload
    (root / "distill/embedded/things/judge/b.safetensors").write_bytes(b"trained further")
    with pytest.raises(ValueError, match=r"things/judge/b.safetensors differs from the last commit"):
        pack.pack_weights(packed)
    with pytest.raises(ValueError, match=r"things/judge/b.safetensors differs from the last commit"):
        pack.share_out(packed, 4)  # prints how to remove it


@pytest.mark.parametrize("what", ["prior", "novel_view", "views", "judge"])
def test_a_training_is_asked_in_words_that_its_script_takes(
    what: str, scripts: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, asked = scripts("train"), list[str]()

    def run(command: list[object], minutes: float) -> int:
        asked.extend(map(str, command))
        return 0

    monkeypatch.setattr(train, "run", run)
    more = ["--things", str(tmp_path)] if what == "judge" else []
    monkeypatch.setattr(
        sys, "argv", ["train.py", what, "--minutes", "2", "--work", str(tmp_path / "work"), *more]
    )
    with pytest.raises(SystemExit) as ended:
        train.main()
    assert ended.value.code == 0
    script = Path(asked[1])
    monkeypatch.setattr(sys, "argv", asked[1:])
    options = scripts(script.stem).parse_options()
    assert (options.work, options.minutes, options.save_minutes) == (tmp_path / "work", 2, 1)
    if what in ("views", "judge"):
        assert options.output == tmp_path / "work" / "model"
