"""What a run does when it is asked to stop: in its last step, and before and after its training."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distill import cli
from distill.run import execute
from distill.run.config.compose import compose_config
from distill.run.folder.folders import claim, folder_name
from distill.run.journal import Journal, check_there
from distill.run.several import batch
from distill.run.signals import as_interrupts, heeding_launcher, stop_signals

#: Two steps of a small picture.
QUICK = [
    "scene=image", "iterations=2", "render.size=16", "render.batch=1", "export.enabled=false", "log.tensorboard=false",
    "log.preview_every=0", "log.checkpoint_every=0", "view_words=none", "device=cpu",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("a red mug\na blue mug\n")


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture
def asked_in_the_last_step(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Lets SIGTERM arrive in the last step of every run, after its journal has looked whether to stop; returns what ends that."""
    plain = Journal.__call__

    def called(self: Journal, state: Any, metrics: Any, picture: Any) -> bool:
        stop = plain(self, state, metrics, picture)
        if state.step == 2:
            send(signal.SIGTERM)
        return stop

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "__call__", called)
        yield patch.undo


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "runs"),
    [
        (["a red mug", "resume=true"], 1),
        (["prompts=list.txt"], 2),
        (["a red mug", "seeds=2", "resume=true"], 2),
        (["a red mug", "-m", "seed=0,1", "resume=true"], 2),
        (["a red mug", "particles=2", "guidance=sds", "resume=true"], 1),
    ],
)
def test_asked_in_its_last_step_a_run_stops_and_nothing_else_begins(
    words: list[str],
    runs: int,
    asked_in_the_last_step: Callable[[], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(*words, *QUICK) == 130
    assert "stopped at step 2 of 2; continue with resume=true" in capsys.readouterr().err
    assert len(list(Path("outputs").rglob("metrics.jsonl"))) == 1
    assert not list(Path("outputs").rglob("report.html"))
    # What is left is to describe and export it; the further runs follow.
    asked_in_the_last_step()
    assert command(*words, *QUICK) == 0
    made = list(Path("outputs").rglob("metrics.jsonl"))
    assert all((path.parent / "report.html").exists() for path in made)
    assert len(made) == runs
    assert all(
        [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1] for path in made
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["begin", "describe"])
def test_asked_before_or_after_its_training_a_run_says_so(
    number: signal.Signals, when: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    plain = getattr(execute, when)

    def asked(*arguments: Any, **options: Any) -> Any:
        send(number)
        return plain(*arguments, **options)

    with monkeypatch.context() as patch:
        for module in (execute, *([batch] if when == "begin" else [])):
            patch.setattr(module, when, asked)
        for words in (["a red mug", "output_dir=one"], ["prompts=list.txt", "output_dir=many"]):
            assert command(*words, *QUICK) == 130
            assert "interrupted; to continue, add resume=true, or for a file" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
    # A queue's table is written all the same.
    with Path("many/batch.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == []
    assert command("prompts=list.txt", "output_dir=many", *QUICK) == 0
    assert command("a red mug", "output_dir=one", "resume=true", *QUICK) == 0


def test_a_job_of_a_sweep_that_is_asked_while_it_loads_says_so_wherever_it_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[list[str]] = []

    def job(words: list[str], folders: list[str], library: bool) -> int:
        started.append(words)
        send(signal.SIGTERM)
        return 0

    monkeypatch.setattr(cli, "_job", job)
    before = signal.getsignal(signal.SIGTERM)
    # As a worker of a launcher calls it, which has no handler of its own.
    assert cli._swept(["prompt=a red mug"], []) == 130
    assert "distill: interrupted; to continue, add resume=true" in capsys.readouterr().err
    assert command("a red mug", "-m", "seed=0,1", *QUICK) == 130
    said = capsys.readouterr().err
    assert "distill: interrupted; " in said and "its further jobs are not started" in said
    assert len(started) == 2 and signal.getsignal(signal.SIGTERM) == before


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has none")
def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with as_interrupts():
            send(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with pytest.raises(KeyboardInterrupt), as_interrupts():
            send(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="Windows has none")
@pytest.mark.parametrize("code", [0, 130])
def test_a_launcher_hears_that_the_time_is_over_after_its_job_has_stopped(code: int) -> None:
    """Submitit's own handler ends a job wherever it is; a job that is finished by then has nothing to be put back for."""
    happened: list[str] = []

    def put_back(*_: object) -> None:
        happened.append("put back")
        raise SystemExit(144)

    def job() -> int:
        with stop_signals() as stop:
            send(signal.SIGUSR2)
            happened.append(f"asked to stop: {stop.is_set()}")
        return code

    earlier = signal.signal(signal.SIGUSR2, put_back)
    try:
        if code:
            with pytest.raises(SystemExit):
                heeding_launcher(job)
        else:
            assert heeding_launcher(job) == 0
        assert happened == ["asked to stop: True", *(["put back"] if code else [])]
        assert signal.getsignal(signal.SIGUSR2) is put_back
    finally:
        signal.signal(signal.SIGUSR2, earlier)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="Windows has none")
def test_a_signal_that_no_launcher_heeds_keeps_its_meaning() -> None:
    usual = signal.getsignal(signal.SIGUSR2)
    assert heeding_launcher(lambda: int(signal.getsignal(signal.SIGUSR2) is not usual)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("when", [1, 2, "exported"])
def test_a_folder_that_is_removed_under_a_run_comes_back_as_no_finished_one(
    when: int | str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second prompt's folder is removed; the same command makes it anew, where it was, and the first stays."""
    folder = Path("outputs", folder_name("a blue mug"))
    plain, finish = Journal.__call__, execute.finish

    def called(self: Journal, state: Any, metrics: Any, picture: Any) -> bool:
        if state.step == when and self.folder == folder:
            shutil.rmtree(folder)
        return plain(self, state, metrics, picture)

    def finished(where: Path, manifest: dict[str, Any]) -> None:
        if when == "exported" and where == folder:
            shutil.rmtree(folder)
            folder.mkdir()  # as a writer of meshes does
        finish(where, manifest)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "__call__", called)
        patch.setattr(execute, "finish", finished)
        assert command("prompts=list.txt", *QUICK, "log.checkpoint_every=1") == 1
    said = capsys.readouterr().out
    assert "1 finished, 0 skipped, 1 failed" in said and f"{folder} was removed, or moved, while" in said
    assert not (folder / "report.html").exists()
    assert command("prompts=list.txt", *QUICK, "log.checkpoint_every=1") == 0
    assert "1 finished, 1 skipped, 0 failed" in capsys.readouterr().out
    assert len(list(Path("outputs").glob("*/report.html"))) == 2


def test_what_was_written_into_a_removed_folder_is_to_be_removed_before_the_same_command(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "mine"
    config = compose_config(["prompt=a mug", f"output_dir='{folder.as_posix()}'"])
    claim(config)
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "mesh.glb").write_text("as a writer of meshes does")
    with pytest.raises(OSError, match=r"remove what is left there, and give the same command again"):
        check_there(folder)
    with pytest.raises(ValueError, match="something else than a run"):
        claim(config)
    shutil.rmtree(folder)
    assert claim(config) == folder
