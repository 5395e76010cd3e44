"""Several processes train as one that accumulates: the same prompts, cameras and noise, and they end together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from scenes import Growing, hash_grid, hyper, several
from torch import multiprocessing
from usual import optimiser_of, settings_of

from distill import cli, loop
from distill.conditions import prompt_library, prompts
from distill.contracts import Scene, Step
from distill.files.checkpoint import load_checkpoint, save_checkpoint
from distill.guidance.sds import sds
from distill.job import Job, State
from distill.priors.exact import dirac
from distill.ranks import ALONE, Ended, Lost, Ranks, joined, streams
from distill.run import execute, journal
from distill.run.assembly.assemble import assemble
from distill.run.assembly.prior import check_fits
from distill.run.config.compose import compose_config
from distill.run.launched import check_shared
from distill.run.several.amortise import amortise, set_accumulate
from distill.samplers.cameras import ranges
from distill.samplers.schedules import Ramp
from distill.samplers.timesteps import uniform

NAMES = ("mug", "duck", "chair")
LEVELS = torch.linspace(0.1, 0.9, 3 * 8 * 8).view(3, 8, 8)
PRIOR = dirac({"mug": LEVELS, "duck": LEVELS.flip(1), "chair": LEVELS.flip(2), "": torch.zeros_like(LEVELS)})
#: One process per core of a small machine.
TWO = 2


def job(make: Callable[..., Scene], ranks: Ranks, iterations: int = 4, **settings: Any) -> Job:
    """A run of a scene of one prompt, or of a library's generator."""
    g = torch.Generator().manual_seed(3)
    scene = make(g)
    library: Any = scene
    condition = prompts.conditioner(PRIOR, "mug")
    if "library" in scene.features:
        condition = prompt_library.conditioner(
            lambda number: prompts.conditioner(PRIOR, NAMES[number]), library.drawn
        )
    wanted = settings_of(iterations, **{"batch": 2, "size": Ramp(8), **settings})
    return Job(
        State(scene, optimiser_of(scene), g), PRIOR, partial(sds, scale=1.0), condition,
        partial(scene.render, penalties=tuple(wanted.penalties)), ranges(), uniform(PRIOR), wanted, ranks=ranks,
    )  # fmt: skip


def growing(seed: Any = 0) -> Scene:
    return Growing(6, 6, seed=seed)


#: Runs that two processes share, and what divides the same step on one process.
CASES: dict[str, tuple[Callable[..., Scene], dict[str, Any], dict[str, Any]]] = {
    "a prompt each": (hyper, {"accumulate": 2, "clip_norm": 1.0, "ema": 0.9}, {}),
    "two prompts each": (hyper, {"accumulate": 4, "penalties": {"sparsity": Ramp(0.5)}}, {}),
    "one prompt's views": (hyper, {"batch": 4}, {"at_once": 2}),
    "views": (hash_grid, {"batch": 4, "penalties": {"orientation": Ramp(0.1)}, "final_lr": 0.1}, {"at_once": 2}),
    "views one at a time": (hash_grid, {"batch": 4, "at_once": 1, "summed": True}, {}),
    # A scene that was not drawn has no gradient, and Adam must not move it by its momentum.
    "particles": (several(hash_grid), {"batch": 2}, {"at_once": 1}),
    "a scene that grows by the step": (growing, {"batch": 2, "ema": 0.9}, {"at_once": 1}),
}  # fmt: skip


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def failing(*_: Any) -> Any:
    raise ValueError("the prior has had enough")


def stopped(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """A run whose second process is asked to stop in its third step, and continues from the first one's checkpoint."""
    asked, own = threading.Event(), job(hyper, ranks, accumulate=2, iterations=6)
    stop, metrics = ranks.heed(asked), list[dict[str, float]]()

    def on_step(state: State, now: dict[str, float], _: Any) -> bool:
        metrics.append(now)
        if ranks.rank == 1 and state.step == 2:
            asked.set()
        return stop.is_set()

    ranks.begin(own.state.parameters())
    loop.train(own, on_step)
    if ranks.rank == 0:
        save_checkpoint(folder / "stopped", own.state.step, own.state.state_dict())
    ranks.meet()
    stop.clear()
    ranks.asked = threading.Event()
    again = job(hyper, ranks, accumulate=2, iterations=6)
    saved = load_checkpoint(folder / "stopped")
    assert saved is not None
    again.state.load_state_dict(saved)
    loop.train(again)
    save_checkpoint(folder / f"resumed-{ranks.rank}", 6, again.state.state_dict())
    save_checkpoint(
        folder / f"whole-{ranks.rank}",
        6,
        loop.train(job(hyper, ranks, accumulate=2, iterations=6)).state_dict(),
    )
    return {"stopped": own.state.step, "metrics": metrics}


def begun(ranks: Ranks) -> list[float]:
    own = torch.nn.Parameter(torch.full((2,), 7.0 + ranks.rank))
    ranks.begin([own])
    return own.tolist()


def ending(ranks: Ranks, how: str) -> None:
    own = job(hyper, ranks, accumulate=2)
    if how == "the second fails" and ranks.rank == 1:
        own = replace(own, guidance=failing)
    if how == "both fail":
        own = replace(own, guidance=failing)
    if how == "they grow apart":
        own = job(lambda seed: Growing(6, 6 + ranks.rank, seed=seed), ranks)
    if how == "the second is gone" and ranks.rank == 1:
        os._exit(0)
    loop.train(own)


ENDINGS = ("the second fails", "both fail", "they grow apart", "the second is gone")


def work(rank: int, folder: Path, ports: list[int]) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    ports = list(ports)

    def meeting() -> Any:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(TWO), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(ports.pop())
        )  # fmt: skip
        return joined("cpu")

    said: dict[str, Any] = {}
    with meeting() as ranks:
        said["begun"], said["told"] = begun(ranks), ranks.tell(f"of {rank}")
        for name, (make, settings, _) in CASES.items():
            found = loop.train(job(make, ranks, **settings))
            save_checkpoint(folder / f"{name}-{rank}", found.step, found.state_dict())
        said |= stopped(ranks, folder)
        ranks.part()
    for how in ENDINGS:
        try:
            with meeting() as ranks:
                ending(ranks, how)
        except (ValueError, Ended, Lost) as error:
            said[how] = f"{type(error).__name__}: {error}"
            (folder / f"said-{rank}.json").write_text(json.dumps(said))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which two processes left what they did."""
    folder = tmp_path_factory.mktemp("ranks")
    ports = [free_port() for _ in range(1 + len(ENDINGS))]
    multiprocessing.spawn(work, (folder, ports), nprocs=TWO)
    yield folder


def saved(folder: Path) -> dict[str, Any]:
    found = load_checkpoint(folder)
    assert found is not None
    return found


def said(folder: Path, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"said-{rank}.json").read_text())
    return found


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Tensors and numbers of a state, by their path in it."""
    inside = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, (list, tuple))
        else ()
    )
    if not isinstance(value, (dict, list, tuple)):
        return {path: value}
    return {name: leaf for key, item in inside for name, leaf in leaves(item, f"{path}.{key}").items()}


def same(one: Any, other: Any, **tolerance: Any) -> None:
    first, second = leaves(one), leaves(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(second[name], value, **(tolerance or {"rtol": 0, "atol": 0}), msg=name)
        else:
            assert second[name] == value, name


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_equal_to_the_bit_and_train_as_one_that_accumulates(both: Path, name: str) -> None:
    make, settings, divided = CASES[name]
    one = loop.train(job(make, ALONE, **settings, **divided))
    first, second = (saved(both / f"{name}-{rank}") for rank in range(TWO))
    same(first, second)
    same(first, one.state_dict(), rtol=1e-4, atol=1e-5)
    start = job(make, ALONE, **settings).state.state_dict()
    assert any(
        a.shape != b.shape or not torch.equal(a, b)
        for a, b in zip(start["scene"].values(), first["scene"].values(), strict=True)
    )


def test_they_begin_with_what_the_first_has(both: Path) -> None:
    for rank in range(TWO):
        assert said(both, rank)["begun"] == [7.0, 7.0]
        assert said(both, rank)["told"] == "of 0"


def test_both_stop_after_the_same_step_and_go_on_to_the_same_bits(both: Path) -> None:
    # Asked after its second step, the second process says so in the third, which is done before they stop.
    assert [said(both, rank)["stopped"] for rank in range(TWO)] == [3, 3]
    for rank in range(TWO):
        same(saved(both / f"resumed-{rank}"), saved(both / f"whole-{rank}"))
    assert said(both, 0)["metrics"] == said(both, 1)["metrics"]


def test_one_process_goes_on_with_what_two_began(both: Path) -> None:
    alone = job(hyper, ALONE, accumulate=2, iterations=6)
    alone.state.load_state_dict(saved(both / "stopped"))
    assert alone.state.step == 3
    ended = loop.train(alone).state_dict()
    assert ended["step"] == 6
    same(saved(both / "whole-0"), ended, rtol=1e-4, atol=1e-5)


def test_all_end_with_one_and_the_first_that_failed_speaks(both: Path) -> None:
    first, second = said(both, 0), said(both, 1)
    assert first["the second fails"] == "Ended: process 1 failed, and says why"
    assert second["the second fails"] == "ValueError: the prior has had enough"
    assert first["both fail"] == "ValueError: the prior has had enough"
    assert second["both fail"] == "Ended: process 0 failed, and says why"
    # One step has grown pictures of 6 x 6 and of 6 x 7 pixels by a row and a column.
    assert first["they grow apart"].startswith(
        "ValueError: the scene has 168 parameters on one process and 147 on another"
    )
    assert second["they grow apart"].startswith("Ended")
    assert first["the second is gone"].startswith("Lost: another process ended without a word")


def test_a_step_of_several_prompts_has_the_mean_of_their_gradients() -> None:
    whole, parts = job(hyper, ALONE, accumulate=3), job(hyper, ALONE, accumulate=3)
    loop.step(whole)
    drawn, sums = list[int](), None
    seeds = torch.randint(2**62, (3,), generator=parts.state.generator).tolist()
    for number, seed in enumerate(seeds):
        g, now = torch.Generator().manual_seed(seed), Step(0, 0.0, drawn=number)
        parts.state.scene.update(now, parts.state.optimiser, g)
        library: Any = parts.state.scene
        drawn.append(library.drawn().first)
        parts.state.scene.zero_grad()
        loop.see(parts, now, parts.cameras(0.0, 2, g), g)
        grads = [p.grad.clone() for p in parts.state.parameters() if p.grad is not None]
        sums = grads if sums is None else [a + b for a, b in zip(sums, grads, strict=True)]
    assert sorted(drawn) == [0, 1, 2], "an epoch has each prompt once"
    assert sums is not None
    for parameter, total in zip(whole.state.parameters(), sums, strict=True):
        torch.testing.assert_close(parameter.grad, total / 3)


@pytest.mark.parametrize("count", [2, 6, 7])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_shares_are_consecutive_and_together_all(count: int, size: int) -> None:
    parts = [Ranks(rank, size).share(range(count)) for rank in range(size)]
    assert [item for part in parts for item in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= (count % size > 0)


def test_the_parts_of_a_step_draw_alike_wherever_they_are() -> None:
    g = torch.Generator().manual_seed(1)
    assert streams(g, 1) == [g]
    one, other = (streams(torch.Generator().manual_seed(1), 3) for _ in range(2))
    wanted = [torch.rand(4, generator=stream) for stream in one]
    # The last one first: what another part draws changes nothing.
    assert torch.equal(torch.rand(4, generator=other[2]), wanted[2])
    assert not torch.equal(wanted[0], wanted[1])


SCENE: dict[str, Any] = {
    "scene.levels": 2, "scene.log2_table_size": 8, "scene.hidden_width": 8, "scene.march_steps": 16,
    "scene.occupancy_resolution": 8, "render.batch": 1, "render.size": 16, "log.tensorboard": False, "log.preview_every": 0,
    "log.checkpoint_every": 0, "device": "cpu", "iterations": 5000,
}  # fmt: skip
LISTS = {"train": ["a red mug", "a blue duck", "a green chair"]}


def stopped_after(steps: int) -> type[journal.Journal]:
    class Stops(journal.Journal):
        def __call__(self, *args: Any) -> bool:
            super().__call__(*args)
            if args[0].step == steps:
                self.checkpoint(args[0])
            return bool(args[0].step == steps)

    return Stops


@pytest.mark.slow
def test_a_launched_training_is_stopped_with_one_line_and_goes_on_in_one_process(tmp_path: Path) -> None:
    library, folder = tmp_path / "library.json", tmp_path / "run"
    library.write_text(json.dumps(LISTS))
    words = [f"{name}={str(value).lower()}" for name, value in SCENE.items()]
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
    ]
    command = [
        sys.executable,
        *launch,
        "-m",
        "distill",
        "amortise",
        f"prompts={library}",
        f"output_dir={folder}",
        *words,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    lines, end = folder / "metrics.jsonl", time.monotonic() + 240
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
    ) as running:
        while not (lines.is_file() and lines.read_text().count("\n") >= 2):
            assert running.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        running.send_signal(signal.SIGTERM)
        heard = running.communicate(timeout=120)[1]
    assert running.returncode
    done = len(lines.read_text().splitlines())
    assert heard.count("distill: ") == heard.count(f"distill: stopped at step {done} of 5000") == 1, heard
    assert heard.count("3 prompts to learn, 3333 steps for each") == 1
    state = saved(folder / "checkpoints")
    assert state["step"] == done
    options = {**SCENE, "optimiser.accumulate": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execute, "Journal", stopped_after(done))
        with pytest.raises(journal.Interrupted):
            amortise(library, output_dir=tmp_path / "one", **options)
        same(state, saved(tmp_path / "one" / "checkpoints"), rtol=1e-4, atol=1e-5)
        patch.setattr(execute, "Journal", stopped_after(done + 1))
        with pytest.raises(
            ValueError, match=r"takes 2 prompts in each step, and this would be 1; add optimiser\.acc"
        ):
            amortise(library, output_dir=folder, **SCENE, resume=True)
        with pytest.raises(journal.Interrupted):
            amortise(library, output_dir=folder, **options, resume=True)
    assert saved(folder / "checkpoints")["scene"]["prompts.draws"].tolist() == [2 * (done + 1)]


PROMPT = "prompt=a red mug"
LIBRARY = ("prompts=x", "scene=hyper_grid")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["prompts=x"], r"prompts= makes an asset of each line, .* shard=1/2 and shard=2/2, or hydra/launcher"),
        ([PROMPT, "seeds=2"], "seeds= and retries= does not go with 2 processes"),
        ([PROMPT, "retries=1"], "seeds= and retries= does not go with 2 processes"),
        ([PROMPT, "view=true"], "view=true does not go with 2 processes: a pause"),
        ([PROMPT, "max_vram=12GB"], r"max_vram= does not go with 2 processes: .* choose render\.at_once="),
        ([PROMPT, "device=cuda:1"], "device=cuda:1 does not go with 2 processes: each process takes a GPU"),
        ([PROMPT, "guidance=vsd"], "this guidance trains a copy of the prior"),
        ([PROMPT, "render.batch=3"], r"render\.batch=3 cannot be shared evenly by 2 processes"),
        ([*LIBRARY, "optimiser.accumulate=3"], r"optimiser\.accumulate=3 cannot be shared evenly by 2"),
        ([*LIBRARY, "optimiser.accumulate=1", "render.batch=3"], r"render\.batch=3 cannot be shared evenly"),
    ],
)  # fmt: skip
def test_what_several_processes_cannot_share_is_refused_in_one_line(words: list[str], error: str) -> None:
    config = compose_config(words)
    check_shared(config, 1)
    with pytest.raises(ValueError, match=error) as caught:
        check_shared(config, 2)
    assert "\n" not in str(caught.value)


def test_what_is_shared_evenly_is_taken() -> None:
    for words in (
        [PROMPT],
        [PROMPT, "particles=2"],
        [*LIBRARY, "render.batch=1"],
        [*LIBRARY, "optimiser.accumulate=4"],
    ):
        check_shared(compose_config(words), 2)
    config = compose_config([*LIBRARY])
    set_accumulate(config, 8)
    assert config.optimiser.accumulate == 8
    with pytest.raises(ValueError, match=r"optimiser\.accumulate=2 takes several prompts of a library"):
        compose_config([PROMPT, "optimiser.accumulate=2"])


def test_what_only_a_loaded_prior_shows_is_refused_too() -> None:
    quads: Any = type("Quads", (), {"views": 4, "name": "quads"})()
    with pytest.raises(
        ValueError, match=r"batch=4 on 2 processes is 2 views for each, .* make it a multiple of 8"
    ):
        check_fits(compose_config([PROMPT, "render.batch=4"]), quads, 2)
    mixed = "guidance.terms=[{loss:sds},{loss:vsd}]"
    config = compose_config([PROMPT, "guidance=mix", mixed, "device=cpu"])
    with pytest.raises(ValueError, match="this guidance trains a copy of the prior"):
        assemble(config, ranks=Ranks(0, 2))


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_process_alone_says_what_all_find(
    rank: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    for words, error in (
        (["a red mug", "-m", "seed=0,1"], "a sweep (-m) starts runs of its own, which 2 processes"),
        (["a red mug", "iterations=x"], "iterations"),
    ):
        with pytest.raises(SystemExit) as left:
            cli.main(words)
        assert left.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == (1 if rank == 0 else 0)
        assert rank or error in lines[0]
