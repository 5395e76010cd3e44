"""One run a folder: a lock that outlives no process, refused by a run and skipped by a queue."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from distill.files.atomic import clear
from distill.files.lock import NAME, InUse, hold
from distill.run.config.compose import compose_config
from distill.run.execute import run
from distill.run.folder import folders
from distill.run.folder.table import BUSY
from distill.run.several import batch
from distill.run.several.queue import compose_queue

HOLDER = """
import sys, time
from pathlib import Path
from distill.files.lock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def other_process(folder: Path) -> subprocess.Popen[str]:
    other = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert other.stdout and other.stdout.readline() == "held\n"
    return other


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_folder_that_a_process_holds_is_refused_until_it_dies(
    how: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose_config(["prompt=a red mug", "output_dir=mine"])
    folder = folders.claim(config)
    other = other_process(folder)
    monkeypatch.setattr("distill.run.execute.begin", lambda *_: pytest.fail("loads before it looks"))
    try:
        for options in (["seed=1"], ["resume=true"]):
            with pytest.raises(
                InUse, match=rf"mine is in use .*process {other.pid} on .*output_dir="
            ) as said:
                run(compose_config(["prompt=a red mug", "output_dir=mine", *options]))
            assert "\n" not in str(said.value)
    finally:
        other.send_signal(how)
        other.wait()
        other.stdout and other.stdout.close()
    assert (folder / NAME).is_file()
    with hold(folder, wait=0):
        pass
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml"]


def test_one_at_a_time_holds_it_and_nobody_is_lost(tmp_path: Path) -> None:
    inside, most, turns = 0, 0, 0
    counting = threading.Lock()

    def turn(_: int) -> None:
        nonlocal inside, most, turns
        with hold(tmp_path, wait=30):
            with counting:
                inside, turns = inside + 1, turns + 1
                most = max(most, inside)
            time.sleep(0.002)
            with counting:
                inside -= 1

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(turn, range(60)))
    assert (most, turns) == (1, 60)
    assert not list(tmp_path.iterdir())


def test_queues_over_one_file_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each prompt is made once, in one folder, by whichever comes first."""
    made: list[str] = []

    def work(config: Any, folder: Path, *_: object) -> None:
        made.append(config.prompt)
        time.sleep(0.05)
        (folder / "report.html").write_text("done")

    monkeypatch.setattr(batch, "carry_out", work)
    monkeypatch.setattr(batch, "begin", lambda *_: None)
    monkeypatch.setattr(batch, "open_prior", lambda *_: None)
    monkeypatch.setattr(batch, "embed_first", lambda *_: None)
    prompts = [f"a {colour} {kind}" for colour in ("red", "blue") for kind in ("mug", "cube", "duck")]
    (tmp_path / "list.txt").write_text("\n".join(prompts))
    queue = compose_queue(["prompts=list.txt"])
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(batch.run_prompts, [queue] * 3))
    assert sorted(made) == sorted(prompts)
    assert len([path for path in (tmp_path / "outputs").iterdir() if path.is_dir()]) == len(prompts)
    for prompt in prompts:
        states = [result[prompt] for result in results]
        assert states.count("finished") == 1 and {*states} <= {"finished", "skipped", BUSY}


@pytest.mark.skipif(os.name == "nt", reason="flock is of Unix")
def test_a_file_system_without_locks_is_said_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import fcntl

    def none(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    with hold(tmp_path):
        pass
    assert "has no locks" in caplog.text


def test_a_byte_order_mark_belongs_to_no_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "carry_out", lambda *_: None)
    monkeypatch.setattr(batch, "begin", lambda *_: None)
    monkeypatch.setattr(batch, "open_prior", lambda *_: None)
    monkeypatch.setattr(batch, "embed_first", lambda *_: None)
    for first in ("# a remark\n", ""):
        (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + f"{first}a red mug\r\n".encode())
        assert list(batch.run_prompts(compose_queue(["prompts=list.txt"]))) == ["a red mug"]


@pytest.mark.parametrize("left", [[], [".config.yaml.7.tmp"], [NAME, ".config.yaml.7.tmp"]])
@pytest.mark.parametrize("options", [[], ["output_dir=outputs/a-red-mug-10a5c24a"]])
def test_a_folder_of_a_process_that_was_killed_before_it_wrote_its_settings_is_taken(
    left: list[str], options: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "outputs" / "a-red-mug-10a5c24a"
    folder.mkdir(parents=True)
    for name in left:
        (folder / name).write_text("prom")
    config = compose_config(["prompt=a red mug", *options])
    assert folders.claim(config).resolve() == folder
    (folder / "config.yaml").unlink()
    (folder / "notes.txt").write_text("mine")
    if options:
        with pytest.raises(ValueError, match="holds something else"):
            folders.claim(config)
    else:
        assert folders.claim(config).name == "a-red-mug-10a5c24a-2"


def test_only_what_is_half_written_is_cleared(tmp_path: Path) -> None:
    half = [
        "checkpoints/.step-000003.7.tmp/state.json",
        "particle-1/.mesh.7.part.glb",
        ".manifest.json.7.tmp",
    ]
    whole = ["checkpoints/step-000002/state.json", "particle-1/mesh.glb", ".hidden", "a.tmp", "my.part.glb"]
    for name in (*half, *whole):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    clear(tmp_path)
    assert sorted(
        path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()
    ) == sorted(whole)


def test_a_lock_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("distill.files.lock.os.write", full)
        with pytest.raises(OSError, match="No space"), hold(tmp_path):
            pytest.fail("nobody can hold it")
    assert not list(tmp_path.iterdir())
    with hold(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [NAME]
