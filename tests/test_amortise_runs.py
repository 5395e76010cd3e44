"""A library's run from the command line to its failures, and beginning with scenes that a generator or an earlier run made."""

from __future__ import annotations

import itertools
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image
from scenes import hyper
from torch import Tensor

import distill
from distill import cli, conf, loop
from distill.arguments import library_scene, values_of
from distill.cameras import turntable
from distill.contracts import Render, Step
from distill.export.thumbnail import draw
from distill.export.wall import COLUMNS, SIZE, spread, write_wall
from distill.files.checkpoint import load_checkpoint, save_checkpoint
from distill.renderers.nerf import HashGridScene
from distill.renderers.occupancy import DECAY, STEPS, decoded, encoded
from distill.renderers.prompt_library import epoch
from distill.run import watchdog
from distill.run.assembly import initial
from distill.run.assembly.scenes import scene_maker
from distill.run.config.compose import compose_config
from distill.run.folder.folders import is_finished
from distill.run.folder.summary import summarise
from distill.run.several.amortise import amortise, run_library
from distill.run.several.generator import CHANGEABLE, amortised, check_generator

CPU = torch.device("cpu")
EXPERIMENTS = sorted(path.stem for path in (Path(conf.__file__).parent / "experiment").glob("*.yaml"))
LIBRARIES = {
    "scaledreamer_mg15": "hyper_grid", "scaledreamer_df415": "hyper_conv", "scaledreamer_dl17k": "hyper_conv",
}  # fmt: skip
SMALL: dict[str, Any] = {
    "iterations": 4, "render.batch": 1, "render.size": 8, "log.tensorboard": False, "log.preview_every": 1, "device": "cpu",
    "scene.levels": 2, "scene.log2_table_size": 8, "scene.hidden_width": 8, "scene.march_steps": 16,
    "scene.occupancy_resolution": 8,
}  # fmt: skip


def library(folder: Path) -> Path:
    path = folder / "library.txt"
    path.write_text("a red mug\na blue duck\na green chair\n")
    return path


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    out, err = capsys.readouterr()
    assert isinstance(left.value.code, int)
    return left.value.code, out, err


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_of_a_library_is_a_generators(name: str) -> None:
    words = ["prompts=x", f"experiment={name}"]
    config = compose_config([*words, *library_scene(words)])
    assert amortised(config)
    assert config.scene._target_.rpartition(".")[2] == LIBRARIES.get(name, "hyper_grid")
    for chosen in ("scene=hyper_conv", "++scene=hyper_grid", "scene='hyper_grid'"):
        assert library_scene([*words, chosen]) == []


def test_the_users_own_experiments_and_sweeps_keep_or_get_a_librarys_scene(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own" / "experiment"
    own.mkdir(parents=True)
    (own / "wide.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /scene: hyper_conv\nseed: 7\n"
    )
    (own / "plain.yaml").write_text("# @package _global_\nseed: 8\n")
    words = ["amortise", f"prompts={tmp_path / 'x'}"]
    for flag, name, scene in (("--config-dir", "wide", "conv"), ("-cd", "plain", "grid")):
        code, out, _ = said(capsys, *words, flag, str(tmp_path / "own"), f"experiment={name}", "--options")
        assert code == 0 and f"distill.renderers.hyper_{scene}.hyper_{scene}" in out
    assert library_scene(["experiment=csd,nfsd"]) == ["scene=hyper_grid"]
    assert library_scene(["experiment=scaledreamer_mg15,scaledreamer_df415"]) == []
    assert library_scene(["scene=hyper_grid,hyper_conv"]) == []
    with pytest.raises(ValueError, match=r"csd has no scene of a library and others have one; add scene="):
        library_scene(["experiment=scaledreamer_mg15,csd"])
    with pytest.raises(ValueError, match="got scene=hyper_grid,hash_grid"):
        library_scene(["scene=hyper_grid,hash_grid"])


@pytest.mark.parametrize(
    "flag", [("--why", "scene"), ("--why=scene",), ("--why", "prompts"), ("--why", "experiment")]
)
def test_a_flags_value_is_no_option_of_the_library(
    flag: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = said(capsys, "amortise", "prompts=x", *flag)
    assert (code, err) == (0, "") and (" = " in out)
    assert (
        "scene = hyper_grid" in said(capsys, "amortise", "prompts=x", "--why", "scene", "experiment=csd")[1]
    )


def test_an_empty_word_is_no_flag() -> None:
    assert values_of("--why", ["", "a", "--why", ""]) == ([""], ["", "a"])
    assert values_of("--config-dir", ["-cd", "x", ""], "-cd") == (["x"], [""])


def test_what_is_no_generator_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    path, folder = library(tmp_path), tmp_path / "run"
    with pytest.raises(ValueError, match=r"needs scene=hyper_conv or scene=hyper_grid, got scene=hash_grid"):
        amortise(path, scene="hash_grid", output_dir=folder)
    with pytest.raises(ValueError, match=r"^scene=HashGridScene is of one prompt and learns no library; add"):
        run_library(compose_config([f"prompts={path}", "experiment=csd", f"output_dir={folder}"]))
    assert not folder.exists()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Steps that were begun, each with the number of its prompt."""
    begun: list[tuple[int, int]] = []
    accumulate = loop.accumulate

    def watched(job: Any, now: Any, *rest: Any) -> Any:
        begun.append((now.index, job.scenes[0].drawn().first))
        return accumulate(job, now, *rest)

    monkeypatch.setattr(loop, "accumulate", watched)
    return begun


def states(folder: Path) -> dict[str, Any]:
    found = load_checkpoint(folder / "checkpoints")
    assert found is not None
    return found


def state(folder: Path) -> tuple[str, dict[str, Any]]:
    """How the summary lists a folder, and its manifest."""
    (run,), _ = summarise(folder)
    path = folder / "manifest.json"
    return run.state, json.loads(path.read_text()) if path.exists() else {}


@pytest.mark.slow
def test_a_step_that_ran_out_of_memory_is_done_again_with_its_own_prompt(
    tmp_path: Path, drawn: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**SMALL, "output_dir": tmp_path / "run"}
    see, full = loop.see, [True]

    def fails(job: Any, now: Step, *rest: Any) -> Any:
        if now.index == 2 and full[0]:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return see(job, now, *rest)

    monkeypatch.setattr(loop, "see", fails)
    with pytest.raises(loop.OutOfMemory):
        amortise(library(tmp_path), **options)
    listed, manifest = state(tmp_path / "run")
    assert (listed, manifest["state"], manifest["step"]) == ("failed", "failed", 2)
    assert "did not fit the device's memory" in manifest["why"]
    full[0] = False
    amortise(library(tmp_path), **options, resume=True)
    seed = int(states(tmp_path / "run")["scene"]["prompts.order"])
    order = [draw.first for number in range(2) for draw in epoch(3, 0.0, seed + number)]
    assert {*drawn} == {*enumerate(order[:4])} and len(drawn) == 6  # twice out of memory
    assert int(states(tmp_path / "run")["scene"]["prompts.draws"]) == 4
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["prompts_seen"] for line in lines] == [1, 2, 3, 4]
    assert state(tmp_path / "run")[0] == "finished"


def test_a_draw_follows_from_the_number_that_a_step_gives() -> None:
    made, order = hyper(), []
    for step in (Step(0), Step(1), Step(1), Step(7, drawn=0), Step(0, drawn=1), Step(0, drawn=2)):
        made.update(step, None, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
        order.append((made.drawn(), made.seen()))  # type: ignore[attr-defined]
    assert order[1] == order[2] == order[4] and order[0] == order[3]
    assert sorted(draw.first for draw, _ in (order[0], order[1], order[5])) == [0, 1, 2]
    assert [seen for _, seen in order] == [1, 2, 2, 1, 2, 3]


def test_a_library_that_fails_is_no_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    options: dict[str, Any] = {**SMALL, "output_dir": folder, "optimiser.max_bad_steps": 3}
    with monkeypatch.context() as patch:
        patch.setattr(loop, "clipped", lambda *_: torch.tensor(math.nan))
        with pytest.raises(loop.Diverged):
            amortise(library(tmp_path), **options)
    assert (folder / "wall.png").is_file() and not is_finished(folder)
    listed, manifest = state(folder)
    assert (listed, manifest["state"], manifest["step"]) == ("failed", "failed", 3)
    assert "was not finite in 3 steps in a row" in manifest["why"]


@pytest.mark.slow
def test_a_library_that_collapsed_goes_on_only_when_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "PATIENCE", 2)
    monkeypatch.setattr(watchdog, "EVERY", 1)
    folder = tmp_path / "run"
    empty = {**SMALL, "scene.blob_scale": -50, "scene.blob_radius": 1000, "output_dir": folder}
    with pytest.raises(watchdog.Collapsed):
        amortise(library(tmp_path), **empty)
    assert state(folder)[0] == "collapsed" and state(folder)[1]["step"] == 3
    before = (folder / "metrics.jsonl").read_text()
    with pytest.raises(watchdog.Collapsed, match="collapsed at step 3 of 4"):
        amortise(library(tmp_path), **empty, resume=True)
    assert (folder / "metrics.jsonl").read_text() == before
    amortise(library(tmp_path), **empty, resume=True, watchdog=False)
    listed, manifest = state(folder)
    assert listed == "finished" and "state" not in manifest
    # Another library does not touch what is finished.
    (tmp_path / "other.txt").write_text("a red cube\n")
    with pytest.raises(ValueError, match="learns another library"):
        amortise(tmp_path / "other.txt", **empty, resume=True, watchdog=False)
    assert state(folder) == (listed, manifest)


def test_levels_that_are_open_stay_open() -> None:
    def update(scene: HashGridScene, *progress: float) -> list[int]:
        found = []
        for at in progress:
            scene.update(Step(1, at), None, torch.Generator())  # type: ignore[arg-type]
            found.append(int(scene.active_levels))
        return found

    def grid(progressive: Any) -> HashGridScene:
        return HashGridScene(
            levels=4, log2_table_size=4, march_steps=8, occupancy_resolution=4, progressive_levels=progressive
        )

    learnt = grid((1, 0.75))  # a level more at each quarter
    assert update(learnt, 0.0, 0.25, 0.5) == [1, 2, 3]
    for progressive, wanted in (((1, 0.75), [3, 3, 3, 4]), ((2, 0.25), [3, 4, 4, 4]), (None, [4, 4, 4, 4])):
        again = grid(progressive)
        again.load_state_dict(learnt.state_dict())
        assert int(again.active_levels) == again._active == 3
        assert update(again, 0.0, 0.25, 0.5, 0.75) == wanted


#: For each option that may change, values of an earlier scene and of the one that begins with it.
OTHERS: dict[str, list[tuple[Any, Any]]] = {
    "background": [
        ("white", "learned"),
        ("learned", "white"),
        ("learned", "learned"),
        ("grey", [0.2, 0.4, 0.6]),
    ],
    "random_background": [(0.0, 0.5)],
    "march_steps": [(16, 24)],
    "occupancy_resolution": [(8, 12), (12, 8)],
    "occupancy_threshold": [(0.01, 0.1)],
    "occupancy_every": [(16, 1)],
    "progressive_levels": [([1, 0.5], None), (None, [1, 0.5]), ([1, 0.5], [2, 0.5])],
    "backend": [("torch", "auto")],
    "encoding_lr": [(0.01, 0.1)],
    "mlp_lr": [(0.01, 0.1)],
    "background_lr": [(0.01, 0.1)],
}


def test_every_option_that_may_change_is_tried() -> None:
    of_others = {"lr", "geometry_lr", "geometry", "texture", "width"}  # of a picture, and of a second stage
    assert OTHERS.keys() == CHANGEABLE - of_others


def small_grid(seed: int, **options: Any) -> HashGridScene:
    told = {
        "levels": 2,
        "log2_table_size": 8,
        "hidden_width": 8,
        "march_steps": 16,
        "occupancy_resolution": 8,
    }
    return HashGridScene(**{**told, **options}, seed=seed)


@pytest.mark.parametrize(
    ("name", "before", "now"), [(name, *pair) for name, pairs in OTHERS.items() for pair in pairs]
)
def test_a_run_begins_with_a_scene_of_other_options_that_may_change(
    name: str, before: Any, now: Any, tmp_path: Path
) -> None:
    old, new = small_grid(1, **{name: before}), small_grid(2, **{name: now})
    own = [p.detach().clone() for p in new.parameters()]
    parameters = [p for group in old.parameter_groups().values() for p in group.parameters]
    average = [p.detach() + 0.01 for p in parameters]
    save_checkpoint(tmp_path / "checkpoints", 1, {"scene": dict(old.state_dict()), "average": average})
    initial.start_from(tmp_path, new, CPU)
    shift = 0.01  # the average is what is begun with
    torch.testing.assert_close(new.grid, old.grid + shift)
    for a, b in zip(new.mlp.parameters(), old.mlp.parameters(), strict=True):
        torch.testing.assert_close(a, b + shift)
    if new.background_mlp is not None:
        wanted: list[Any] = (
            [p + shift for p in old.background_mlp.parameters()]
            if old.background_mlp is not None
            else own[-4:]
        )
        for a, b in zip(new.background_mlp.parameters(), wanted, strict=True):
            torch.testing.assert_close(a, b)
    new.update(Step(), None, torch.Generator())  # type: ignore[arg-type]
    new.render(turntable(1), 8, 8, generator=torch.Generator()).rgb.sum().backward()


def test_a_scene_of_another_shape_is_still_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoints", 1, {"scene": dict(small_grid(1).state_dict()), "average": None})
    for other in ({"hidden_width": 4}, {"levels": 3}, {"background": "learned", "hidden_layers": 2}):
        with pytest.raises(ValueError, match="holds a scene of other settings"):
            initial.start_from(tmp_path, small_grid(2, **other), CPU)


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    told = {
        **SMALL,
        "log.preview_every": 0,
        "scene.background": "learned",
        "scene.progressive_levels": [1, 0.5],
    }
    return amortise(library(folder), output_dir=folder / "generator", **told)


def made(generator: Path, *words: str) -> tuple[Any, Any]:
    """The scene of a prompt with options, and the generator's own."""
    config = compose_config(["prompt=a red mug", f"generator={generator}", *words])
    check_generator(config)
    prior = distill.load_prior("embedded")
    scene = scene_maker(config)(seed=0)
    initial.begin_generated(scene, config, prior)
    return scene, initial.generated(config, prior)


@pytest.mark.slow
@pytest.mark.parametrize(
    "option",
    [
        "background=white", "background=[0.1,0.2,0.3]", "random_background=0.5", "march_steps=24", "occupancy_resolution=12",
        "occupancy_threshold=0.3", "occupancy_every=2", "progressive_levels=[1,0.5]", "backend=torch", "encoding_lr=0.5",
    ],
)  # fmt: skip
def test_a_made_scene_has_the_options_that_may_change_as_they_are_given(option: str, generator: Path) -> None:
    name, _, value = option.partition("=")
    assert name in CHANGEABLE
    scene, own = made(generator, f"scene.{option}")
    points = torch.rand(64, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for a, b in zip(scene.field()(points), own.field()(points), strict=True):
        torch.testing.assert_close(a, b)
    assert int(scene.active_levels) == 2
    fresh = small_grid(0, **{name: json.loads(value) if name != "backend" and value != "white" else value})
    assert scene.occupancy.occs.shape == fresh.occupancy.occs.shape
    assert not bool(scene.occupancy.binaries.all()), "found again, not left full"
    if name == "occupancy_threshold":
        kept = scene.occupancy.occs > min(0.3, float(scene.occupancy.occs.mean()))
        assert torch.equal(scene.occupancy.binaries.flatten(), kept)
    scene.update(Step(), None, torch.Generator())
    assert int(scene.active_levels) == 2, "levels that were learnt stay open"


def test_a_made_scene_is_gone_on_from_with_no_option_but_its_folder(generator: Path, tmp_path: Path) -> None:
    asset = distill.generate(
        "a red mug", generator=str(generator), output_dir=tmp_path / "mug",
        **{"export.enabled": False, "log.tensorboard": False, "device": "cpu"},
    )  # fmt: skip
    config = compose_config(["prompt=a red mug", f"init={tmp_path / 'mug'}", "iterations=1"])
    initial.check_init(config)
    scene: Any = scene_maker(config)(seed=3)
    initial.start_from(tmp_path / "mug", scene, CPU)
    # All that is learnt, the background too; how finely it is marched is the new run's own.
    earlier: Any = asset.scene
    before = dict(earlier.named_parameters())
    assert before.keys() == dict(scene.named_parameters()).keys() and len(before) == 9
    assert all(torch.equal(value, before[name]) for name, value in scene.named_parameters())
    scene.update(Step(), None, torch.Generator())
    assert int(scene.active_levels) == 2


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("hash_grid", ["scene.levels=4", "scene.finest_resolution=32", "scene.features=8", "scene.background=learned"]),
        ("hash_grid", ["scene.radius=2.0", "scene.density_activation=exp", "scene.precision=float16"]),
        ("image", ["scene.height=32"]),
    ],
)  # fmt: skip
def test_an_earlier_runs_scene_says_its_own_options(kind: str, words: list[str], tmp_path: Path) -> None:
    before = compose_config(["prompt=a red mug", f"scene={kind}", *words])
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(before))
    (tmp_path / "checkpoints").mkdir()
    mine = ["prompt=a red mug", f"init={tmp_path}"]
    now = compose_config(mine)
    initial.check_init(now)
    kept = {name for name in before.scene if name not in CHANGEABLE}
    assert {name: now.scene[name] for name in kept} == {name: before.scene[name] for name in kept}
    assert kind != "hash_grid" or now.scene.background == before.scene.background
    # What the user says stays, and is refused where it cannot be.
    first = words[0].partition("=")[0].removeprefix("scene.")
    other = {"levels": 5, "radius": 1.5, "height": 48}[first]
    told = compose_config([*mine, f"scene.{first}={other}"])
    assert told.scene[first] == other
    with pytest.raises(ValueError, match=f"holds a scene with {first} "):
        initial.check_init(told)


@given(st.floats(1e-6, 1.0))
def test_a_byte_holds_an_opacity_within_three_percent(value: float) -> None:
    found = float(decoded(encoded(torch.tensor([value]))))
    # Half a step of the scale: the eighth root of what one update leaves.
    assert abs(found / value - 1) <= DECAY ** (-1 / (2 * STEPS)) - 1 + 1e-5 < 0.0284


def test_bytes_decay_without_loss_and_hold_nothing_and_all() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(encoded(decoded(codes)), codes)
    later = encoded(DECAY * decoded(codes)).int()
    assert torch.equal(later[5:], codes[5:].int() - STEPS) and not later[:4].any()
    assert decoded(encoded(torch.tensor([0.0, 1.0, math.nan]))).tolist() == [0.0, 1.0, 0.0]


def test_occupancies_in_bytes_keep_the_cells_that_exact_ones_keep() -> None:
    """Forty updates of opacities over six powers of ten: the exact decayed maxima against those that went through bytes each time."""
    g = torch.Generator().manual_seed(0)
    level = torch.rand(20_000, generator=g) * 6 - 6
    exact, told, differing = torch.zeros(20_000), torch.zeros(20_000), []
    for _ in range(40):
        seen: Tensor = 10 ** (level + 0.3 * torch.randn(20_000, generator=g)).clamp(max=0)
        exact = torch.maximum(DECAY * exact, seen)
        through = torch.maximum(DECAY * decoded(encoded(told)), seen)
        told = through
        differing.append(((exact > 0.01) != (told > 0.01)).float().mean().item())
    assert max(differing) < 0.005
    # A cell within half a step of the threshold may fall on its other side, and no other.
    assert (told / exact - 1).abs().max() <= DECAY ** (-1 / (2 * STEPS)) - 1 + 1e-5


def test_a_generator_is_opened_without_its_librarys_occupancies(generator: Path) -> None:
    saved = states(generator)["scene"]
    assert saved["prompts.occupied"].dtype == torch.uint8 and len(saved["prompts.occupied"]) == 3
    opened: Any = initial.open_generator(generator, CPU)
    assert opened.prompts.occupied.numel() == 0
    config: Any = OmegaConf.load(generator / "config.yaml")
    whole: Any = scene_maker(config)(seed=0, embeddings=saved["prompts.embeddings"])
    whole.load_state_dict(saved)
    assert torch.equal(whole.prompts.occupied, saved["prompts.occupied"])
    told = saved["prompts.embeddings"][1]
    a, b = opened.scene_of(told).state_dict(), whole.scene_of(told).state_dict()
    assert all(torch.equal(a[name], value) for name, value in b.items())
    # A queue's scenes are made by one that is opened once, until it has been trained further.
    assert initial.open_generator(generator, CPU) is opened
    last = max((generator / "checkpoints").glob("*"), key=lambda path: path.stat().st_mtime_ns)
    os.utime(last, ns=(0, last.stat().st_mtime_ns + 10**9))
    assert initial.open_generator(generator, CPU) is not opened


@given(st.integers(1, 500), st.integers(2, 20))
def test_places_are_spread_with_the_first_and_the_last(count: int, most: int) -> None:
    found = spread(count, most)
    assert len(found) == min(count, most)
    assert found[0] == 0 and found[-1] == count - 1
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert not gaps or (min(gaps) >= 1 and max(gaps) - min(gaps) <= 1)


def grey(value: float) -> Any:
    def view(cameras: Any, height: int, width: int) -> Render:
        rgb = torch.full((len(cameras), height, width, 3), value)
        return Render(rgb, torch.ones_like(rgb[..., :1]), torch.ones_like(rgb[..., :1]))

    return view


def test_what_is_named_by_its_step_is_in_the_order_of_the_steps(tmp_path: Path) -> None:
    for value, step in ((0.2, 999_999), (0.8, 1_000_000)):
        write_wall(tmp_path, step, [grey(value)], [("a red mug", True)])
        save_checkpoint(tmp_path / "checkpoints", step, {"step": step}, 1)
    with Image.open(tmp_path / "wall.png") as wall:
        row = [wall.convert("L").getpixel((190 + column * SIZE + 30, 50)) for column in range(5)]
    assert row == [51, 204, 204, 204, 204]  # the fronts, then the other sides of the last
    import io

    with Image.open(io.BytesIO(draw(tmp_path))) as front:
        assert abs(front.convert("L").getpixel((30, 30)) - 204) <= 2  # type: ignore[operator]
    assert states(tmp_path) == {"step": 1_000_000}, "the newest is kept, not the one whose name is last"


@pytest.mark.parametrize("count", [1, 2, 12, 13, 24, 25, 36])
def test_a_wall_has_at_most_so_many_columns(count: int, tmp_path: Path) -> None:
    (tmp_path / "previews").mkdir()
    for step in range(1, count):
        Image.new("RGB", (4 * SIZE, SIZE), "white").save(tmp_path / "previews" / f"step-{step:06d}.png")
    write_wall(tmp_path, count, [grey(0.5)], [("a red mug", True)])
    with Image.open(tmp_path / "wall.png") as wall:
        assert (wall.width - 190) // SIZE == min(count, COLUMNS) + 3
