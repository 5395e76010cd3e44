"""Sweeps whose jobs are processes of their own: joblib on this machine, submitit's local executor for a cluster."""

from __future__ import annotations

import csv
import errno
import itertools
import os
import re
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from distill import cli, guidance
from distill.arguments import split_prompt
from distill.guidance import terms
from distill.run.config.compose import compose_config
from distill.run.folder.folders import claim
from distill.run.several import sweep
from distill.samplers import timesteps


def is_here(package: str) -> bool:
    """Tell whether a launcher's package, which is an extra, is installed."""
    return bool(find_spec("hydra_plugins") and find_spec(f"hydra_plugins.{package}"))


joblib = pytest.mark.skipif(not is_here("hydra_joblib_launcher"), reason="hydra-joblib-launcher is not here")
submitit = pytest.mark.skipif(
    not is_here("hydra_submitit_launcher"), reason="hydra-submitit-launcher is not here"
)
#: One step of a small picture.
QUICK = [
    "scene=image", "iterations=1", "render.size=16", "render.batch=1", "export.enabled=false", "log.tensorboard=false",
    "log.preview_every=0", "view_words=none", "device=cpu", "output_dir=out",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "list.txt").write_text("a red mug\na dragon\n")


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def table(shard: str) -> list[tuple[str, str]]:
    with Path(f"out/batch-{shard}.csv").open(newline="") as file:
        return [(row["prompt"], row["state"]) for row in csv.DictReader(file)]


@pytest.mark.slow
@submitit
def test_shards_are_jobs_of_a_cluster_and_a_failing_one_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    """Of two prompts in three parts, the third has none, and says so at once; the second part's prompt is refused."""
    code = command("prompts=list.txt", *QUICK, "-m", "shard=3/3,2/3", "hydra/launcher=submitit_local")
    (error,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("distill: error:")]
    assert (
        code == 1
        and "a job of the sweep ended with exit code 1: prompts='list.txt'" in error
        and "shard=2/3" in error
    )
    assert table("3-of-3") == []
    ((prompt, state),) = table("2-of-3")
    assert prompt == "a dragon" and state != "finished"


@pytest.mark.slow
@joblib
def test_shards_are_processes_of_this_machine(capfd: pytest.CaptureFixture[str]) -> None:
    """Of two prompts in five parts, the fourth and the fifth have none, and say so at once."""
    assert (
        command(
            "prompts=list.txt",
            *QUICK,
            "-m",
            "shard=4/5,5/5",
            "hydra/launcher=joblib",
            "hydra.launcher.n_jobs=2",
        )
        == 0
    )
    assert table("4-of-5") == table("5-of-5") == []
    assert "distill: error:" not in capfd.readouterr().err


def test_a_launcher_is_an_option_and_no_prompt() -> None:
    assert split_prompt(["a red mug", "-m", "hydra/launcher=joblib"]) == (
        "a red mug",
        ["-m", "hydra/launcher=joblib"],
    )


@pytest.mark.parametrize(
    ("words", "there", "said"),
    [
        (
            ["hydra/launcher=joblib"],
            True,
            "hydra/launcher=joblib distributes the jobs of a sweep; add -m and several values",
        ),
        (
            ["-m", "seed=0,1", "hydra/launcher=joblib"],
            False,
            "needs the package hydra-joblib-launcher; install it with pip install",
        ),
        (
            ["-m", "seed=0,1", "hydra/launcher=submitit_slurm"],
            False,
            "needs the package hydra-submitit-launcher",
        ),
    ],
)
def test_a_launcher_that_cannot_be_used_is_one_line(
    words: list[str],
    there: bool,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sweep, "find_spec", lambda name: name if there else None)
    assert command("a red mug", *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("distill: error:") and said in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["seed=0,1", "export.up=y,q"],
            "job 2 of 4 of the sweep (seed=0 export.up=q): export.up must be y or z, got 'q'; leave it out",
        ),
        (["seed=0,-1", "output_dir=null"], "job 2 of 2 of the sweep (seed=-1): seed must be"),
        (["prior=embedded,sd-9", "output_dir=null"], "job 2 of 2 of the sweep (prior=sd-9): prior must be"),
        (["init=null,gone", "output_dir=null"], "job 2 of 2 of the sweep (init=gone): init must be"),
        (["prompt='a red mug','a dragon'", "output_dir=null"], "the sweep (prompt='a dragon'): "),
        (
            ["seed=0,1"],
            "job 2 of 2 of the sweep (seed=1): output_dir=out is another job's, too; leave it out",
        ),
        (
            ["guidance=vsd", "guidance.lora=gone", "seed=0,1", "output_dir=null"],
            "job 1 of 2 of the sweep (seed=0): guidance.lora must be",
        ),
        (
            ["output_dir=o,./o/"],
            "job 2 of 2 of the sweep (output_dir=./o/): output_dir=./o/ is another job's, too",
        ),
    ],
)
def test_what_a_later_job_is_refused_for_is_said_before_the_first_begins(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cli, "_swept", pytest.fail)
    prompt = [] if words[0].startswith("prompt=") else ["a red mug"]
    assert command(*prompt, "-m", *QUICK, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("distill: error: job ") and said in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.txt"]


@pytest.mark.slow
def test_jobs_of_one_folder_may_be_shards_and_wait_for_their_own_prompts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is wrong with a prompt of a file is for its own run, and a cluster's login node need not have a GPU."""
    ran = list[list[str]]()

    def swept(words: list[str], folders: list[str], library: bool = False, skips: bool = False) -> int:
        ran.append(words)
        return 0

    monkeypatch.setattr(cli, "_swept", swept)
    assert command("prompts=list.txt", "-m", *QUICK, "shard=1/2,2/2") == 0
    assert [word for words in ran for word in words if word.startswith("shard")] == ["shard=1/2", "shard=2/2"]
    sweep.check_jobs([["prompt=a red mug", "device=cuda", f"seed={seed}"] for seed in (0, 1)], [], here=False)
    with pytest.raises(ValueError, match="device=cuda"):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        sweep.check_jobs([["prompt=a red mug", "device=cuda"]], [], here=True)


@pytest.mark.parametrize("kind", [RuntimeError, ConnectionResetError])
def test_a_lost_worker_is_one_line(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost(*arguments: object, **options: object) -> object:
        def job() -> None:
            raise kind("a worker process was terminated:\n  its exit code is -9")

        return lambda function: job

    monkeypatch.setattr("hydra.main", lost)
    monkeypatch.setattr(sweep, "launcher_of", lambda *_: "joblib")
    assert command("a red mug", "-m", "seed=0,1", "hydra/launcher=joblib") == 1
    error = capsys.readouterr().err
    assert error.startswith(
        "distill: error: a job of the sweep was lost: a worker process was terminated: its exit code is -9; the same"
    )
    assert error.count("\n") == 1


def test_the_queue_of_a_cluster_takes_options_of_runs_after_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples" / "queues")
    import ray_prompts

    (tmp_path / "list.txt").write_text("a red mug\n")
    # What is wrong is found after the words are read, and before ray, which may not be here, is imported.
    words = [str(tmp_path / "list.txt"), "--workers", "2", "iterations=400", "render.size=7.5"]
    assert ray_prompts.main(words) == 2
    assert "render.size" in capsys.readouterr().err


@pytest.mark.parametrize("home", ["__main__", __name__])
def test_a_launchers_processes_are_given_no_part_that_the_script_itself_registers(
    home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a module, they import it; in this process, the script's own is known."""

    def early(prior: Any, *, t_max: float = 1.0) -> Any: ...

    early.__module__, early.__qualname__ = home, "early"
    monkeypatch.setattr(sys.modules[home], "early", early, raising=False)
    monkeypatch.setattr(timesteps, "_registered", {})
    timesteps.register(early)
    jobs = [["prompt=a red mug", "timesteps=early", f"seed={seed}"] for seed in (0, 1)]
    sweep.check_jobs(jobs, (), here=True)
    if home == "__main__":
        with pytest.raises(
            ValueError,
            match=r"^job 1 of 2 .*timesteps=early is registered by the script itself, .*; no job was started",
        ):
            sweep.check_jobs(jobs, (), here=False)
    else:
        sweep.check_jobs(jobs, (), here=False)


OWN_LOSSES = [
    (["guidance=own"], "guidance=own"),
    (["guidance=mix", "guidance.terms=[{loss: sds}, {loss: own}]"], "guidance.terms[1].loss=own"),
    (["guidance=sds", "guidance.weighting=steep"], "guidance.weighting=steep"),
    (["guidance=mix", "guidance.terms=[{loss: csd, weighting: steep}]"], "guidance.terms[0].weighting=steep"),
    (["stages=[field,surface]", "stage.field.guidance=own"], "guidance=own"),
]


@pytest.mark.parametrize("home", ["__main__", __name__])
@pytest.mark.parametrize(("words", "said"), OWN_LOSSES)
def test_no_loss_or_weighting_of_the_script_itself_is_given_to_a_launcher(
    words: list[str], said: str, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def own(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, scale: float = 1.0) -> Any: ...

    def steep(alpha: Any, sigma: Any) -> Any: ...

    monkeypatch.setattr(guidance, "_registered", {})
    monkeypatch.setattr(terms, "WEIGHTINGS", dict(terms.WEIGHTINGS))
    registered: list[tuple[Any, Any]] = [(own, guidance.register), (steep, guidance.register_weighting)]
    for part, register in registered:
        part.__module__, part.__qualname__ = home, part.__name__
        monkeypatch.setattr(sys.modules[home], part.__name__, part, raising=False)
        register(part)
    jobs = [["prompt=a red mug", *words, f"seed={seed}"] for seed in (0, 1)]
    if home == __name__:
        return sweep.check_jobs(jobs, (), here=False)
    with pytest.raises(
        ValueError, match=f" {re.escape(said)} is registered by the script itself, "
    ) as caught:
        sweep.check_jobs(jobs, (), here=False)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_no_faulty_configuration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sweep's folder is Hydra's to write, after all jobs have been looked at."""

    def full(*names: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *names)

    for launcher, names in itertools.product((None, "joblib"), ((), ("outputs/sweeps",))):
        assert sweep.ended(partial(full, *names), launcher) == 1
        error = capsys.readouterr().err
        said = "".join(f"{name}: " for name in names)
        assert re.search(
            rf"error: the sweep's own files cannot be written \({said}(\[Errno 28\] )?No space left on device\)",
            error,
        )
        assert "hydra.sweep.dir=" in error and error.count("\n") == 1


@pytest.mark.slow
def test_a_sweep_that_is_continued_makes_no_finished_run_again(caplog: pytest.LogCaptureFixture) -> None:
    words = [*QUICK[:-1], "log.checkpoint_every=0", "resume=true"]
    assert command("a red mug", *words, "-m", "seed=0,1") == 0
    reports = {path: path.stat().st_mtime_ns for path in Path("outputs").glob("*/report.html")}
    gone = max(reports, key=reports.__getitem__)
    gone.unlink()  # as of a run that was killed before its end
    caplog.set_level("INFO")
    assert command("a red mug", *words, "-m", "seed=0,1") == 0
    now = {path: path.stat().st_mtime_ns for path in Path("outputs").glob("*/report.html")}
    assert len(reports) == 2 and now.keys() == reports.keys()
    assert [path for path in now if now[path] != reports[path]] == [gone]
    assert [text for text in caplog.messages if text.startswith("finished before, in ")] == [
        f"finished before, in {path.parent}" for path in reports if path != gone
    ]


@pytest.mark.parametrize(("flags", "skips"), [(["-m"], True), (["hydra.job.name=mine"], False)])
def test_only_a_sweep_skips_finished_runs(
    flags: list[str], skips: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, a finished run that is resumed is exported again, also with an option of Hydra's."""
    made: list[object] = []

    def job(*given: object) -> int:
        made.append(given)
        return 0

    monkeypatch.setattr(sweep, "finished", lambda *_: Path("outputs/run"))
    monkeypatch.setattr(cli, "_job", job)
    assert command("a red mug", "resume=true", *flags) == 0
    assert bool(made) != skips


def test_what_a_finished_run_lacks_is_work_for_a_job_that_resumes_it(tmp_path: Path) -> None:
    words = ["prompt='a red mug'", "resume=true"]
    folder = claim(compose_config(words, []))
    assert sweep.finished(words, []) is None
    (folder / "report.html").write_text("a report")
    assert sweep.finished(words, []) == folder
    assert sweep.finished(words[:1], []) is None
    assert sweep.finished([*words, "export.lods=2"], []) is None
    assert sweep.finished([*words, "seed=5"], []) is None
