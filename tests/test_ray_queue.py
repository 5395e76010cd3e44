"""Handing out prompts with Ray, by a stand-in for it: what fails, what dies, and what is told of either."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from distill.run.folder.table import Row
from distill.run.several.queue import compose_queue


class RayError(Exception):
    """As in Ray, above the two others."""


class RayTaskError(RayError):
    """The method of an actor has raised."""


class RayActorError(RayError):
    """The actor is gone."""


class Stopped(BaseException):
    """Stands for a driver that is stopped."""


#: What a worker does of a prompt, the how manieth time: returns, or raises what ``ray.get`` is to raise.
Plan = Callable[[str, int], Row]


class Fake(ModuleType):
    """Actors that do all they are asked at once, and tell it when ``get`` asks; the oldest task is ready first."""

    def __init__(self, plan: Plan, embed: Exception | None = None) -> None:
        super().__init__("ray")
        self.__spec__ = ModuleSpec("ray", None)
        self.exceptions = SimpleNamespace(
            RayError=RayError, RayTaskError=RayTaskError, RayActorError=RayActorError
        )
        self.plan, self.embed, self.started = plan, embed, 0
        self.asked: list[tuple[int, str]] = []
        self.shut = False

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 4.0}

    def init(self, **_: object) -> None: ...

    def shutdown(self) -> None:
        self.shut = True

    def remote(self, **_: float) -> Any:
        return lambda _: SimpleNamespace(remote=self._start)

    def _start(self, parts: Any, root: str) -> Any:
        assert Path(root).is_absolute()
        self.started += 1
        number = self.started

        def make(prompt: str) -> Any:
            self.asked.append((number, prompt))
            times = sum(each == prompt for _, each in self.asked)
            return lambda: self.plan(prompt, times)

        def embed() -> Any:
            def done() -> None:
                if self.embed:
                    raise self.embed

            return done

        return SimpleNamespace(make=SimpleNamespace(remote=make), embed=SimpleNamespace(remote=embed))

    def wait(self, tasks: list[Any], num_returns: int) -> Any:
        return tasks[:num_returns], tasks[num_returns:]

    def get(self, task: Any) -> Any:
        return task()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples" / "queues")
    import ray_prompts

    Path("list.txt").write_text("a red mug\na blue mug\na green mug\n")
    return ray_prompts


def use(monkeypatch: pytest.MonkeyPatch, plan: Plan, embed: Exception | None = None) -> Fake:
    fake = Fake(plan, embed)
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


def made(prompt: str) -> Row:
    folder = Path("out") / prompt[2:5]
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    return Row(prompt, "finished", f"out/{prompt[2:5]}", 1.0)


def table() -> dict[str, str]:
    with Path("out/batch-ray.csv").open(newline="") as file:
        return {row["prompt"]: row["state"] for row in csv.DictReader(file)}


@pytest.mark.parametrize("kind", [KeyError, RuntimeError, MemoryError])
def test_an_error_that_nobody_foresaw_is_a_row_and_its_worker_goes_on(
    kind: type[Exception], script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray raises an error that is a task's and of the cause's type."""

    class Both(RayTaskError, kind):  # type: ignore[valid-type, misc]
        def __str__(self) -> str:
            return "ray::Worker.make() (pid=1)\n  File x\nKeyError: 'faces'"

    def plan(prompt: str, times: int) -> Row:
        if prompt == "a red mug":
            raise Both
        return made(prompt)

    fake = use(monkeypatch, plan)
    assert script.main(["list.txt", "--workers", "1", "output_dir=out"]) == 1
    assert table() == {
        "a red mug": "KeyError: 'faces'",
        "a blue mug": "finished",
        "a green mug": "finished",
    }
    assert fake.started == 1 and fake.shut


@pytest.mark.parametrize("kind", [RayActorError, RayError])
def test_the_prompt_of_a_dead_worker_goes_back_and_is_given_up_after_so_many(
    kind: type[Exception], script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The red mug kills three workers, the blue one its first."""

    def plan(prompt: str, times: int) -> Row:
        if prompt == "a red mug" or (prompt, times) == ("a blue mug", 1):
            raise kind("it died\nof something")
        return made(prompt)

    fake = use(monkeypatch, plan)
    rows = list(
        script.make_all(
            compose_queue(["prompts=list.txt"]).parts,
            Path.cwd(),
            workers=2,
        )
    )
    assert {row.prompt: row.state for row in rows} == {
        "a red mug": "3 workers died of it", "a blue mug": "finished", "a green mug": "finished",
    }  # fmt: skip
    counts = {prompt: sum(each == prompt for _, each in fake.asked) for _, prompt in fake.asked}
    assert counts == {"a red mug": 3, "a blue mug": 2, "a green mug": 1}
    # Nobody is asked after death: of each worker, only the last prompt killed it.
    dead = [worker for worker, prompt in fake.asked if prompt == "a red mug"]
    assert len(set(dead)) == 3


def test_prompts_that_cannot_be_embedded_at_once_are_made_all_the_same(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, lambda prompt, times: made(prompt), RayTaskError("trace\nTypeError: x"))
    assert script.main(["list.txt", "output_dir=out"]) == 0
    assert set(table().values()) == {"finished"}
    assert "embedded run by run: TypeError: x" in capsys.readouterr().err


@pytest.mark.parametrize(("end", "code"), [(Stopped, None), (KeyboardInterrupt, 130)])
def test_what_was_made_is_in_the_table_whatever_ends_the_driver(
    end: type[BaseException], code: int | None, script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(prompt: str, times: int) -> Row:
        if prompt == "a blue mug":
            raise end
        return made(prompt)

    fake = use(monkeypatch, plan)
    try:
        assert script.main(["list.txt", "--workers", "1", "output_dir=out"]) == code
    except Stopped:
        assert code is None
    assert table() == {"a red mug": "finished"} and fake.shut


def test_a_shard_is_part_of_the_list_and_has_a_table_of_its_own(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = use(monkeypatch, lambda prompt, times: made(prompt))
    assert script.main(["list.txt", "shard=1/2", "output_dir=out"]) == 0
    assert sorted(prompt for _, prompt in fake.asked) == ["a green mug", "a red mug"]
    assert len(Path("out/batch-ray-1-of-2.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["view=true"], "view=true shows the runs of one process"),
        (["prior=gone"], "gone"),
        (["judge=gone"], "judge must be embedded, things or a folder with a CLIP"),
        (["--cpus", "9"], "choose other --cpus and --gpus"),
        (["device=cpu"], "no worker can start: no such module"),
    ],
)
def test_what_is_wrong_is_one_line(
    words: list[str],
    said: str,
    script: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    use(monkeypatch, lambda prompt, times: made(prompt), RayActorError("it died\nno such module"))
    assert script.main(["list.txt", "output_dir=out", *words]) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("ray_prompts: error:") and said in error and error.count("\n") == 1


def test_without_ray_one_line_says_what_to_install(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "find_spec", lambda name: None)
    assert script.main(["list.txt", "output_dir=out"]) == 2
    assert capsys.readouterr().err == (
        "ray_prompts: error: this script needs the package ray; install it with pip install ray\n"
    )
