"""What goes wrong around a queue: folders that are taken, other layouts, failures before the training, tables, and slips."""

from __future__ import annotations

import csv
import errno
import json
import logging
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from distill import cli
from distill.arguments import check_flags, split_prompt
from distill.files import lock
from distill.files.errors import line_of
from distill.files.lock import InUse, hold
from distill.run import execute, launched
from distill.run.config.compose import compose_config
from distill.run.config.overrides import literal
from distill.run.folder import folders
from distill.run.folder.failures import forget, note, noted, noting
from distill.run.folder.folders import claim
from distill.run.folder.stored import OtherLayout, same_run
from distill.run.folder.summary import summarise
from distill.run.folder.table import BUSY, SHOWN, Row, cut, read, tell, write
from distill.run.journal import Interrupted
from distill.run.several import batch, seeds, sweep
from distill.run.several.queue import Queue, compose_queue
from distill.run.several.seeds import better


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("a red mug\na blue mug\n")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Training that only writes a report; the prompts that were made."""
    made: list[str] = []

    def work(config: Any, folder: Path, *_: object) -> None:
        made.append(config.prompt)
        (folder / "report.html").write_text("done")

    for name, value in {
        "carry_out": work,
        "begin": lambda *_: None,
        "open_prior": lambda *_: None,
        "embed_first": lambda *_: None,
    }.items():
        monkeypatch.setattr(batch, name, value)  # fmt: skip
    return made


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_root_that_is_taken_is_waited_for_and_said(
    quick: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Longer than a word takes; no prompt is dropped."""
    monkeypatch.setattr(lock, "SAY_EVERY", 0.1)
    root, held, end = Path("out"), threading.Event(), time.monotonic() + 60
    root.mkdir()

    def other() -> None:
        with hold(root):
            held.set()
            while "waiting for" not in caplog.text and time.monotonic() < end:
                time.sleep(0.05)

    holder = threading.Thread(target=other)
    holder.start()
    held.wait()
    with caplog.at_level(logging.INFO):
        results = batch.run_prompts(compose_queue(["prompts=list.txt", "output_dir=out"]))
    holder.join()
    assert results == {"a red mug": "finished", "a blue mug": "finished"}
    assert re.search(r"waiting for \S*out, which is in use \(process \d+ on", caplog.text)


def test_a_root_that_stays_taken_is_an_error_and_a_run_that_is_at_work_is_left_to_its_process(
    quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "WAIT", 0.1)
    queue = compose_queue(["prompts=list.txt", "output_dir=out"])
    Path("out").mkdir()
    with hold(Path("out")):
        results = batch.run_prompts(queue)
    assert all("the name of a folder could not be chosen" in said for said in results.values())
    folder = claim(batch._one(queue.config, "a red mug"), Path("out"))
    with hold(folder):
        assert batch.run_prompts(queue) == {"a blue mug": "finished", "a red mug": BUSY}
    # A folder within the run's that is taken is not the run's own: the prompt is not dropped.
    monkeypatch.setattr(batch, "carry_out", raising(InUse(folder / "seed-0", "seed-0 is in use")))
    assert batch.run_prompts(queue) == {"a red mug": "seed-0 is in use", "a blue mug": "skipped"}


def test_what_a_process_leaves_is_made_by_one_that_is_still_at_work_on_the_list(
    quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = compose_queue(["prompts=list.txt", "output_dir=out"])
    folder = claim(batch._one(queue.config, "a red mug"), Path("out"))
    with ExitStack() as holder:
        holder.enter_context(hold(folder))
        plain = batch.carry_out

        def ends(*given: Any) -> Any:
            holder.close()  # as if the process that was at work on the first prompt was killed during the second
            return plain(*given)

        monkeypatch.setattr(batch, "carry_out", ends)
        assert batch.run_prompts(queue) == {"a blue mug": "finished", "a red mug": "finished"}
    assert sorted(quick) == ["a blue mug", "a red mug"]


def test_a_queue_that_is_interrupted_says_who_else_is_at_work() -> None:
    made: list[str] = []

    def make(config: Any, prompt: str) -> Row:
        made.append(prompt)
        if prompt == "c":
            raise KeyboardInterrupt
        return Row(prompt, BUSY if prompt == "a" else "finished", f"out/{prompt}", 0.0)

    rows: list[Row] = []
    config: Any = None
    with pytest.raises(KeyboardInterrupt):
        batch.make_each([(config, prompt) for prompt in "abc"], make, rows)
    assert rows == [Row("b", "finished", "out/b", 0.0), Row("a", BUSY, "out/a", 0.0)] and made == [
        "a",
        "b",
        "c",
    ]


def test_prompts_in_other_hands_are_tried_as_long_as_one_becomes_free() -> None:
    free_at = {"a": 3, "b": 2, "c": 9, "d": 1}  # at which try
    tries = dict.fromkeys(free_at, 0)

    def make(config: Any, prompt: str) -> Row:
        tries[prompt] += 1
        return Row(prompt, "finished" if tries[prompt] >= free_at[prompt] else BUSY, prompt, 0.0)

    rows: list[Row] = []
    config: Any = None
    batch.make_each([(config, prompt) for prompt in "abcd"], make, rows)
    assert [(row.prompt, row.state) for row in rows] == [
        ("d", "finished"), ("b", "finished"), ("a", "finished"), ("c", BUSY),
    ]  # fmt: skip
    assert tries == {"a": 3, "b": 2, "c": 4, "d": 1}


def test_a_table_keeps_what_another_process_knows_better() -> None:
    path = Path("batch.csv")
    tell([Row("a red mug", "no surface", "out/red", 3.0)], path)
    tell([Row("a red mug", BUSY, "", 0.0), Row("a blue mug", BUSY, "", 0.0)], path)
    assert read(path) == [Row("a red mug", "no surface", "out/red", 3.0), Row("a blue mug", BUSY, "", 0.0)]
    assert not any(row.failed for row in (read(path) or ())[1:])
    tell([Row("a red mug", "skipped", "out/red", 0.0), Row("a blue mug", "finished", "out/blue", 2.0)], path)
    assert {row.prompt: row.state for row in read(path) or ()} == {
        "a red mug": "skipped",
        "a blue mug": "finished",
    }
    assert [one.name for one in Path().glob(".*")] == []


def test_tables_that_are_written_at_once_lose_no_row() -> None:
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda i: write([Row(f"number {i}", "finished", "x", 1.0)], Path("batch.csv")), range(40)
            )
        )
    assert len(read(Path("batch.csv")) or ()) == 40


def raising(error: BaseException) -> Any:
    def work(*_: object, **__: object) -> None:
        raise error

    return work


def test_settings_are_written_and_compared_before_the_root_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """With three runs of other seeds in the way."""
    for seed in range(3):
        claim(compose_config(["prompt=a red mug", f"seed={seed}"]), Path("out"))
    compared = list[tuple[str, bool]]()

    def plain(folder: Path, config: Any) -> bool:
        compared.append((folder.name, (Path("out") / lock.NAME).exists()))
        return same_run(folder, config)

    monkeypatch.setattr(folders, "same_run", plain)
    folder = claim(compose_config(["prompt=a red mug", "seed=7", "resume=true"]), Path("out"))
    assert folder.name == "a-red-mug-10a5c24a-4"
    assert [held for _, held in compared if _ != folder.name] == [False] * 3
    assert claim(compose_config(["prompt=a red mug", "seed=1", "resume=true"]), Path("out")).name.endswith(
        "-2"
    )


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (0, 1), (3, 0)])
@pytest.mark.parametrize("named", [["output_dir=outputs/mine"], []])
def test_retries_that_need_other_folders_are_refused(before: int, after: int, named: list[str]) -> None:
    folder = claim(compose_config(["prompt=a red mug", f"retries={before}", *named]))
    again = compose_config(["prompt=a red mug", f"retries={after}", "resume=true", *named])
    for ask in (claim, folders.check_unused) if named else (claim,):
        with pytest.raises(OtherLayout, match=f"add retries={before}, or choose another output_dir=") as said:
            ask(again)
        assert "\n" not in str(said.value)
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml"]


def test_retries_that_change_no_folders_may_change() -> None:
    for words, other in ((["retries=1"], "retries=3"), (["seeds=2"], "retries=2")):
        folder = claim(compose_config(["prompt=a red mug", *words]))
        assert claim(compose_config(["prompt=a red mug", *words, other, "resume=true"])) == folder


def test_a_queue_with_other_retries_skips_what_is_finished_and_refuses_the_rest(quick: list[str]) -> None:
    batch.run_prompts(compose_queue(["prompts=list.txt", "output_dir=out"]))
    next(Path("out").glob("a-blue*/report.html")).unlink()
    results = batch.run_prompts(compose_queue(["prompts=list.txt", "output_dir=out", "retries=2"]))
    assert results["a red mug"] == "skipped" and "add retries=0" in results["a blue mug"]
    assert quick == ["a red mug", "a blue mug"]


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["Interrupted", "KeyboardInterrupt"])
@pytest.mark.parametrize("words", [["a red mug", "-m", "seed=0,1,2"], ["prompts=list.txt", "--multirun", "shard=1/2,2/2"]])  # fmt: skip
def test_who_stops_a_sweep_stops_all_of_it(
    stop: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from distill.run.journal import Interrupted

    jobs = list[object]()

    def work(asked: Any, *_: object, **__: object) -> None:
        config = asked.config if isinstance(asked, Queue) else asked
        jobs.append((config.seed, config.shard))
        raise Interrupted("stopped at step 3 of 5") if stop == "Interrupted" else KeyboardInterrupt

    monkeypatch.setattr(launched, "run", work)
    monkeypatch.setattr(batch, "run_prompts", work)
    assert command(*words) == 130
    assert len(jobs) == 1
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_job_that_fails_does_not_stop_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = list[int]()

    def work(config: Any, *_: object, **__: object) -> None:
        jobs.append(config.seed)
        raise ValueError("this one fails")

    monkeypatch.setattr(launched, "run", work)
    assert command("a red mug", "-m", "seed=0,1,2") == 2 and jobs == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("negative_prompt=ugly, blurry", ["ugly, blurry"]),
        ("negative_prompt=ugly,blurry", ["ugly,blurry"]),
        ("negative_prompt='ugly','a, b'", ["ugly", "a, b"]),
        ("output_dir=a (copy)/x=1", ["a (copy)/x=1"]),
        ("output_dir=a{1}, b", ["a{1}, b"]),
        ("output_dir=it's", ["it's"]),
        ("output_dir=one/a,two/b", ["one/a", "two/b"]),
    ],
)
def test_texts_are_one_value_in_a_sweep_and_several_in_quotes(
    word: str, values: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = list[str]()
    monkeypatch.setattr(launched, "run", lambda config, **_: found.append(config[word.partition("=")[0]]))
    assert command("a red mug", word, "-m", "seed=0") == 0
    assert found == values


@pytest.mark.parametrize(
    ("arguments", "prompt", "options"),
    [
        (["mesh=x.glb", "iteratons=5"], None, ["mesh=x.glb", "iteratons=5"]),
        (["image=x.png", "iteratons=5"], None, ["image=x.png", "iteratons=5"]),
        (["iteratons=5", "prompts=x.txt"], None, ["prompts=x.txt", "iteratons=5"]),
        (["prompts=x.txt", "a=1", "b.c=2"], None, ["prompts=x.txt", "a=1", "b.c=2"]),
        (["prompt=x", "iteratons=5"], None, ["prompt=x", "iteratons=5"]),
        (["mesh=x.glb", "a red mug", "iteratons=5"], "a red mug", ["mesh=x.glb", "iteratons=5"]),
        (["mesh=x.glb", "--", "E=mc2"], "E=mc2", ["mesh=x.glb"]),
        (["mesh=x.glb", "iteratons=5", "--", "E=mc2"], "E=mc2", ["mesh=x.glb", "iteratons=5"]),
        (["E=mc2"], "E=mc2", []),
    ],
)
def test_a_slip_in_an_option_is_no_prompt(
    arguments: list[str], prompt: str | None, options: list[str]
) -> None:
    assert split_prompt(arguments) == (prompt, options)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a red mug", "--bad"], "unknown flag --bad"),
        (["a red mug", "-x"], "unknown flag -x"),
        (["a red mug", "--multrun", "seed=0,1"], "did you mean --multirun?"),
        (["doctor", "--bad"], "unknown flag --bad"),
        (["doctor", "--jason"], "did you mean --json?"),
        (["prompts="], "prompts= is empty; write prompts=FILE"),
        (["prompts=  "], "prompts= is empty; write prompts=FILE"),
        (["mesh=x.glb", "iteratons=5"], "unknown option 'iteratons'; did you mean 'iterations'?"),
        (["a red mug", f"output_dir={'x' * 300}"], "too long"),
        ([f"prompts={'x' * 300}"], "too long"),
        ([f"image={'x' * 300}.png"], "too long"),
        ([f"{'x' * 300}.png"], "too long"),
        (["a red mug", f"mesh={'x' * 300}.glb"], "too long"),
        (["a red mug", f"judge={'x' * 300}"], "judge"),
        (["a red mug", f"init={'x' * 300}"], "too long"),
        (["a red mug", f"prior={'x' * 300}"], "x"),
        (["summary", "x" * 300], "x"),
    ],
)
def test_what_is_wrong_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("distill: error:") and said in error and error.count("\n") == 1


def test_known_flags_pass() -> None:
    check_flags(["a red mug", "-m", "--cfg", "job", "--cfg=job", "seed=-1", "~init", "--options"])


def test_a_failure_before_the_training_is_noted(quick: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "begin", raising(RuntimeError("no such kernel")))
    queue = compose_queue(["prompts=list.txt", "output_dir=out"])
    assert set(batch.run_prompts(queue).values()) == {"no such kernel"}
    runs, _ = summarise(Path("out"))
    assert [(run.prompt, run.state, run.why) for run in runs] == [
        ("a blue mug", "failed", "no such kernel"), ("a red mug", "failed", "no such kernel"),
    ]  # fmt: skip


#: How a loss, a scene or a prior of one's own may fail.
OWN = [TypeError("of a loss"), KeyError("of a loss"), AssertionError("of a loss"), MemoryError("of a loss"), ZeroDivisionError("of a loss")]  # fmt: skip


@pytest.mark.parametrize("error", OWN, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("part", ["begin", "carry_out"])
def test_no_failure_of_one_prompt_stops_the_rest(
    error: Exception,
    part: str,
    quick: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = getattr(batch, part)

    def fails(config: Any, *more: Any) -> Any:
        if config.prompt == "a red mug":
            raise error
        return plain(config, *more)

    monkeypatch.setattr(batch, part, fails)
    results = batch.run_prompts(compose_queue(["prompts=list.txt", "output_dir=out"]))
    assert "of a loss" in results["a red mug"] and results["a blue mug"] == "finished"
    assert caplog.text.count("Traceback") == 1  # of what nobody foresaw, where it was
    runs, _ = summarise(Path("out"))
    assert [(run.prompt, run.state) for run in runs] == [("a red mug", "failed"), ("a blue mug", "finished")]
    assert "of a loss" in runs[0].why


def test_a_queue_that_is_stopped_in_a_run_stops_and_notes_no_failure(
    quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "carry_out", raising(Interrupted("stopped at step 3 of 9")))
    with pytest.raises(Interrupted):
        batch.run_prompts(compose_queue(["prompts=list.txt", "output_dir=out"]))
    runs, _ = summarise(Path("out"))
    assert [(run.prompt, run.state, run.why) for run in runs] == [("a red mug", "unfinished", "")]


@pytest.mark.parametrize(
    "error",
    [RuntimeError("no memory"), ValueError("no picture"), OSError(28, "full"), TypeError("of a loss")],
)
def test_any_failure_of_a_seed_is_noted_of_it_and_of_the_run(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose_config(["prompt=a red mug", "seeds=2", "output_dir=run"])
    folder = claim(config)
    note(folder, {"prompt": "a red mug"}, RuntimeError("of an earlier time"))
    for part in ("assemble", "carry"):
        monkeypatch.setattr(seeds, "begin", raising(error) if part == "assemble" else lambda *_: SimpleNamespace(prior=None))  # fmt: skip
        with pytest.raises(type(error)):
            seeds.run_seeds(config, folder, None, raising(error))
        for path in (folder, folder / "seed-0"):
            assert noted(path)["state"] == "failed" and line_of(error) in noted(path)["why"]


def test_an_earlier_failure_is_forgotten_while_seeds_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose_config(["prompt=a red mug", "seeds=2", "output_dir=run"])
    folder = claim(config)
    note(folder, {"prompt": "a red mug"}, RuntimeError("of an earlier time"))
    states = list[Any]()

    def assemble(*_: object) -> None:
        states.append(noted(folder).get("state"))
        raise KeyboardInterrupt

    monkeypatch.setattr(seeds, "begin", assemble)
    with pytest.raises(KeyboardInterrupt):
        seeds.run_seeds(config, folder, None, raising(KeyboardInterrupt()))
    assert states == [None]


def test_what_was_noted_within_stays(tmp_path: Path) -> None:
    config = compose_config(["prompt=a red mug"])
    with pytest.raises(ValueError), noting(config, tmp_path):
        note(tmp_path, {"step": 7}, ValueError("the first"))
        raise ValueError("the second")
    assert noted(tmp_path)["step"] == 7 and noted(tmp_path)["why"] == "the first"
    with pytest.raises(ValueError), noting(config, tmp_path):
        raise ValueError("of a later time")
    assert noted(tmp_path)["why"] == "of a later time"
    forget(tmp_path)
    with pytest.raises(InUse), noting(config, tmp_path):
        raise InUse(tmp_path, "in use")
    assert noted(tmp_path) == {}


def test_a_finished_run_that_fails_later_is_not_said_to_be_finished(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("the report")
    note(tmp_path, {"prompt": "a red mug"}, OSError(28, "full"))
    assert not folders.is_finished(tmp_path)
    assert (tmp_path / "report-earlier.html").read_text() == "the report"


def test_how_a_run_failed_is_noted_even_if_its_parts_cannot_be_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose_config(["prompt=a red mug", "iterations=9"])
    job: Any = SimpleNamespace(state=SimpleNamespace(step=4, skipped=0), prior=None, picture=None)
    monkeypatch.setattr(execute, "_carry_out", raising(RuntimeError("the first error")))
    with pytest.raises(RuntimeError, match="the first error"):
        execute.carry_out(config, tmp_path, job, 0.0)
    said = noted(tmp_path)
    assert (said["prompt"], said["step"], said["iterations"], said["why"]) == ("a red mug", 4, 9, "the first error")  # fmt: skip


def test_the_steps_of_seeds_count_while_a_run_is_at_work() -> None:
    """Ten steps of the first seed and four of the second: 14 of 3 x 10."""
    config = compose_config(["prompt=a red mug", "seeds=3", "iterations=10", "output_dir=out/run"])
    folder = claim(config)
    for seed, done in ((0, 10), (1, 4)):
        own = claim(seeds.one_seed(config, seed, folder, None))
        (own / "metrics.jsonl").write_text("".join(f'{{"step": {i}}}\n' for i in range(done)))
    (run,), _ = summarise(Path("out"))
    assert (run.state, run.steps) == ("unfinished", "14/30")


def test_refused_prompts_of_all_tables_are_told_once() -> None:
    """The tables of shards with folders of their own, of which one was given twice; the cube was made in the end."""
    refused = Row("a dragon", "does not know 'dragon'", "", 0.0)
    for place, rows in {
        "runs/1": [refused, Row("a cube", "no", "", 0.0)], "runs/2": [refused, Row("a griffin", "no\nsuch", "", 0.0)],
    }.items():  # fmt: skip
        tell(rows, Path(place) / "batch.csv")
    tell([refused], Path("runs/batch-1-of-2.csv"))
    own = Path("runs/1/cube")
    own.mkdir()
    (own / "manifest.json").write_text(json.dumps({"prompt": "a cube"}))
    (own / "batch.csv").write_text("of a run's own\n")
    runs, _ = summarise(Path("runs"))
    assert [(run.prompt, run.state, run.why) for run in runs] == [
        ("a dragon", "refused", "does not know 'dragon'"), ("a griffin", "refused", "no such"), ("a cube", "unfinished", ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [b"a,b\n1,2\n", b"prompt,state\nx,y\n", b"prompt,state,folder,seconds\nx\n", b"\xff\xfe\x00", b"", b"prompt,state,folder,seconds\nx,y,,soon\n",
     b"x" * 200_000, b'prompt,state,folder,seconds\n"x'],
)  # fmt: skip
def test_foreign_tables_are_left_out_and_left_alone(content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    own = Path("out/run")
    own.mkdir(parents=True)
    (own / "manifest.json").write_text("{}")
    table = Path("out/batch-x.csv")
    table.write_bytes(content)
    assert len(summarise(Path("out"))[0]) == 1
    assert "is not a table of a batch" in caplog.text
    tell([Row("a mug", "finished", "out/mug", 1.0)], table)
    assert table.read_bytes() == content


STRANGE = ["[]", "3", "null", "[", "\udcff".encode("utf-8", "surrogateescape"), '{"prompt": ["x"], "seed": "x", "seconds": {"a": "b"}}',
    '{"prompt": {}, "iterations": "many", "seeds": 7, "state": ["x"], "score": "high"}', '{"seeds": [1, {"why": 3}], "seconds": [1]}',
    '{"prompt": "\\ud800", "score": NaN, "iterations": 1e400, "step": "x"}', '{"iterations": true, "seed": 1.5, "score": 1' + "0" * 400 + "}",
    '{"name": "My page", "icons": [], "prompt": "x", "seed": [], "iterations": -3, "why": {}}']  # fmt: skip


@pytest.mark.parametrize("content", STRANGE)
@pytest.mark.parametrize("finished", [True, False])
def test_a_manifest_that_holds_anything_is_a_line(content: str | bytes, finished: bool) -> None:
    own = Path("out/run")
    own.mkdir(parents=True)
    (own / "manifest.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    (own / "config.yaml").write_text("prompt: [1]\nimage: [2]\nseed: {}\niterations: x\n")
    if finished:
        (own / "report.html").touch()
    (run,), page = summarise(Path("out"))
    assert run.score is None and isinstance(run.prompt, str) and run.folder == "run"
    with Path("out/summary.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 1 and page.is_file()


def test_folders_that_cannot_be_read_or_vanish_are_said_and_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import os

    for name in ("closed/run", "gone/run", "there/run", "half"):
        Path(f"out/{name}").mkdir(parents=True)
        Path(f"out/{name}/manifest.json").write_text("{}")
    plain, is_file = os.scandir, Path.is_file

    def scandir(path: Any) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied")
        if Path(path).name == "gone":
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return plain(path)

    def looked(path: Path) -> bool:
        if path.parent.name == "half":
            raise PermissionError(errno.EACCES, "Permission denied")
        return is_file(path)

    monkeypatch.setattr("os.scandir", scandir)
    monkeypatch.setattr(Path, "is_file", looked)
    assert [run.folder for run in summarise(Path("out"))[0]] == ["there/run"]
    assert caplog.text.count("cannot be read") == 3


def test_a_second_list_adds_to_the_table_of_the_first(quick: list[str]) -> None:
    Path("more.txt").write_text("a red mug\na green mug\n")
    for name in ("list.txt", "more.txt"):
        batch.run_prompts(compose_queue([f"prompts={name}", "output_dir=out"]))
    rows = read(Path("out/batch.csv"))
    assert rows and [(row.prompt, row.state) for row in rows] == [
        ("a blue mug", "finished"), ("a red mug", "skipped"), ("a green mug", "finished"),
    ]  # fmt: skip


def test_a_long_table_is_told_in_part_what_failed_first(caplog: pytest.LogCaptureFixture) -> None:
    rows = [Row(f"number {i}", "finished" if i != 90 else "no surface", "x", 1.0) for i in range(100)]
    with caplog.at_level(logging.INFO):
        tell(rows, Path("out/batch.csv"))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1 + SHOWN + 1
    assert lines[1].startswith("number 90") and lines[-1] == "... and 60 more in out/batch.csv"
    assert read(Path("out/batch.csv")) == rows


@given(st.text(), st.integers(3, 60))
def test_a_text_is_cut_by_characters(text: str, width: int) -> None:
    found, line = cut(text, width), " ".join(text.split())
    assert len(found) <= width and "\n" not in found
    assert found == line if len(line) <= width else line.startswith(found[:-3]) and found.endswith("...")
    assert cut("x" * 100, 10) == "xxxxxxx..." and cut("杯" * 9, 5) == "杯杯..."


@given(st.text(alphabet="ab$\\{}:'\" ", max_size=12))
def test_a_literal_text_comes_back_as_it_was(text: str) -> None:
    """Of OmegaConf, of a queue's configuration and of a seed's folder; four kinds of backslashes before an interpolation among them."""
    for each in (text, f"{text}${{x}}", f"\\${{x}}{text}", f"\\\\${{x}}{text}"):
        assert OmegaConf.create({"a": literal(each)}).a == each


def test_one_refused_prompt_leaves_the_others_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()

    def texts(one: Any, prior: object) -> list[str]:
        if "griffin" in one.prompt:
            raise ValueError("no")
        return [one.prompt, "ugly"]

    monkeypatch.setattr(batch, "texts_of", texts)
    prior: Any = SimpleNamespace(embed=asked.extend)
    wanted = ["a red mug", "a dragon", "a griffin", "a blue mug"]
    batch.embed_first(compose_config(["prompts=list.txt"]), wanted, prior)
    assert asked == ["a red mug", "ugly", "a blue mug"]


def test_prompts_of_a_queue_are_checked_with_one_composition(monkeypatch: pytest.MonkeyPatch) -> None:
    composed = list[str]()
    plain = batch._one

    def one(config: Any, prompt: str) -> Any:
        composed.append(prompt)
        return plain(config, prompt)

    monkeypatch.setattr(batch, "_one", one)
    wanted = [f"a red mug {i}" for i in range(20)]
    batch.say_first(compose_config(["prompts=list.txt"]), wanted)
    assert len(composed) == 1
    batch.say_first(compose_config(["prompts=list.txt", "prior=gone"]), wanted)
    assert len(composed) == 1


@pytest.mark.parametrize(
    "code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EIO, errno.EINVAL, errno.ESTALE]
)
def test_only_a_file_system_without_locks_does_without(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", raising(OSError(code, "said")))
    if code in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
        with hold(tmp_path):
            pass
    else:
        with pytest.raises(OSError, match="said"), hold(tmp_path):
            pass


def test_a_score_that_is_no_number_never_wins() -> None:
    nan = float("nan")
    for scores, wanted in (((nan, 0.2, 0.1), 1), ((0.2, nan), 0), ((nan, nan), 0), ((0.1, nan, 0.3), 2)):
        best = 0
        for number in range(1, len(scores)):
            if better({"score": scores[number]}, {"score": scores[best]}, "best"):
                best = number
        assert best == wanted


def test_finished_runs_say_which_options_they_were_not_written_with(
    quick: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    batch.run_prompts(compose_queue(["prompts=list.txt", "output_dir=out"]))
    again = compose_queue(["prompts=list.txt", "output_dir=out", "export.resolution=77", "device=cpu"])
    caplog.clear()
    assert set(batch.run_prompts(again).values()) == {"skipped"}
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 2 and all(
        "it was finished without export.resolution=77, and is left" in line for line in said
    )
    config = compose_config(["prompt=a red mug", "seeds=2", "output_dir=run"])
    folder = claim(config)
    for seed in (0, 1):
        own = claim(seeds.one_seed(config, seed, folder, None))
        (own / "report.html").touch()
    config.export.resolution = 77
    caplog.clear()
    seeds._make(config, 0, Path("run"), None, raising(AssertionError()), None)
    assert "seed 0: it was finished without export.resolution=77" in caplog.text


def test_a_sweep_names_the_plain_lists_that_it_splits() -> None:
    assert sweep._LIST.fullmatch("prior=sd-1.5,sd-2.1-base") and sweep._LIST.fullmatch(
        "image=a/b.png,~/c.png"
    )
    assert not any(
        map(sweep._LIST.fullmatch, ["negative_prompt=a,b", "output_dir=a b,c", "judge=x", "prior=a(1),b"])
    )
