"""Training novel views: what each sample gets, the rate, resumption, and several processes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from safetensors.torch import save_file
from test_novelview_data import write_object
from test_novelview_model import make_unet, write_encoder
from torch import Tensor
from torch.nn.functional import mse_loss

from distill.files.checkpoint import load_checkpoint
from distill.lab.novel_view import loop
from distill.lab.novel_view.pairs import Pairs, mixed
from distill.lab.novel_view.train import (
    Samples,
    TrainConfig,
    collate,
    loss_of,
    main,
    make_optimiser,
    make_sampler,
    measure_samples,
    numbers_of,
    open_pipeline,
    open_views,
    train,
    validation_pairs,
)
from distill.priors.novel_view.features import load_encoder
from distill.priors.novel_view.pipeline import NovelViewPipeline


def write_start(folder: Path, *, latent: bool) -> Path:
    """A text-to-image model of real classes to begin from."""
    make_unet(4 if latent else 3).save_pretrained(folder / "unet")
    if latent:
        torch.manual_seed(2)
        AutoencoderKL(
            block_out_channels=(8,), norm_num_groups=4, latent_channels=4, down_block_types=("DownEncoderBlock2D",),
            up_block_types=("UpDecoderBlock2D",),
        ).save_pretrained(folder / "vae")  # fmt: skip
    DDIMScheduler(prediction_type="v_prediction").save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    for number in range(5):
        write_object(tmp_path / "renders" / f"object{number}", number, size=16)
    write_encoder(tmp_path / "encoder", "dinov2")
    return TrainConfig(
        data=str(tmp_path / "renders"), init=str(write_start(tmp_path / "start", latent=False)),
        encoder=str(tmp_path / "encoder"), output_dir=str(tmp_path / "out"), views=3, size=16, held_out=0.2,
        iterations=4, batch=2, accumulate=2, warmup=2, precision="no", workers=0, validate_every=0,
        validation_pairs=3, checkpoint_every=2, log_every=1, tracker="none", ema=0.9,
    )  # fmt: skip


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, Tensor]:
    return NovelViewPipeline.load(folder / "model").model.state_dict()


def changed(config: TrainConfig, **options: Any) -> TrainConfig:
    from dataclasses import replace

    return replace(config, **options)


@pytest.mark.slow
def test_a_training_goes_on_from_a_novel_view_model_with_its_conditioning(config: TrainConfig) -> None:
    model = train(config)
    learnt = NovelViewPipeline.load(model).model.state_dict()
    again = changed(config, init=str(model), seed=7)
    begun = open_pipeline(again, load_encoder(Path(config.encoder))).model.state_dict()
    assert begun.keys() == learnt.keys()
    assert all(torch.equal(begun[name], learnt[name]) for name in learnt)
    assert learnt["amalgamation.projection.weight"].any()
    with pytest.raises(ValueError, match="is of another encoder or amalgamation; give the same encoder="):
        open_pipeline(changed(again, norm=False), load_encoder(Path(config.encoder)))


@pytest.mark.parametrize("latent", [False, True])
@pytest.mark.parametrize("size", [16, 32])
def test_a_training_draws_pictures_of_the_size_that_was_asked_for(
    config: TrainConfig, tmp_path: Path, latent: bool, size: int
) -> None:
    config = changed(config, init=str(write_start(tmp_path / "begin", latent=latent)), size=size)
    encoder = load_encoder(config.encoder)
    pipeline = open_pipeline(config, encoder)
    assert pipeline.size == size
    assert (
        pipeline.space.encode(torch.zeros(1, 3, size, size)).shape[-1]
        == pipeline.model.unet.config.sample_size
    )
    saved = pipeline.save(tmp_path / "model")
    assert NovelViewPipeline.load(saved).size == size
    # A novel-view model keeps its size, and another one is refused.
    assert open_pipeline(changed(config, init=str(saved)), encoder).size == size
    with pytest.raises(
        ValueError,
        match=rf"draws pictures of {size} pixels.*; give size={size}, or begin from a text-to-image",
    ):
        open_pipeline(changed(config, init=str(saved), size=size + 16), encoder)


def test_a_size_that_the_unet_cannot_halve_is_refused(config: TrainConfig) -> None:
    with pytest.raises(ValueError, match="must be a multiple of 4 pixels high, got 18"):
        open_pipeline(changed(config, size=18), load_encoder(config.encoder))


@pytest.mark.parametrize("stage", ["unet", "code"])
def test_a_training_that_diverges_ends_in_one_line_and_saves_nothing_more(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    if stage == "code":
        config = changed(config, code=True, tokens=2, draft=8, code_iterations=4, code_batch=4)
    config, update, done = changed(config, checkpoint_every=1), loop._update, []

    def breaking(course: Any, state: Any, *rest: Any) -> Tensor:
        loss = update(course, state, *rest)
        done.append(state.update)
        if state.update == 2:
            with torch.no_grad():
                next(state.model.parameters()).fill_(math.nan)
        return loss

    monkeypatch.setattr(loop, "_update", breaking)
    with pytest.raises(
        ValueError, match=r"diverged: its weights are not finite after update 2.*step-0*1; begin again"
    ) as caught:
        train(config)
    assert "\n" not in str(caught.value) and done == [1, 2]
    folder = Path(config.output_dir) / ("code" if stage == "code" else "")
    saved = load_checkpoint(folder / "checkpoints")
    assert saved is not None and saved["update"] == 1
    assert not (Path(config.output_dir) / "model").exists()


def test_a_loss_that_is_not_finite_is_passed_where_the_weights_are_whole(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = loop._update
    monkeypatch.setattr(loop, "_update", lambda *given: update(*given) * math.nan)
    train(config)
    lines = (Path(config.output_dir) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [None] * 4


def test_the_rate_of_a_note_is_of_the_updates_since_the_last(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 10))  # each look at the clock is ten seconds later
    monkeypatch.setattr(loop.time, "perf_counter", lambda: float(next(clock)))
    train(changed(config, iterations=5, log_every=3, validate_every=0, checkpoint_every=100))
    lines = (Path(config.output_dir) / "metrics.jsonl").read_text().splitlines()
    # By hand: three updates of 2 x 2 samples in ten seconds, then the two that are left.
    assert [(json.loads(x)["step"], json.loads(x)["samples_per_second"]) for x in lines] == [
        (3, 1.2),
        (5, 0.8),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("latent", [False, True])
def test_a_training_leaves_a_model_its_losses_and_a_sheet(
    config: TrainConfig, tmp_path: Path, latent: bool
) -> None:
    if latent:
        config = changed(config, init=str(write_start(tmp_path / "latent", latent=True)))
    folder = Path(config.output_dir)
    assert train(config) == folder / "model"
    assert len(losses(folder)) == 4
    assert all(math.isfinite(loss) for loss in losses(folder))
    assert [path.name for path in (folder / "samples").iterdir()] == ["update-0000004.png"]
    validation = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in validation] == [4]
    begun = open_pipeline(config, load_encoder(config.encoder)).model.state_dict()
    moved = [name for name, value in weights(folder).items() if not torch.equal(value, begun[name])]
    # Everything learns, the maps' projection at last too, which starts at zero.
    assert {"amalgamation.projection.weight", "token.projection.weight", "unet.conv_in.weight"} <= set(moved)


@pytest.mark.slow
def test_tensorboard_gets_what_the_files_have(config: TrainConfig) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(changed(config, tracker="tensorboard", validate_every=2))
    folder = Path(config.output_dir)
    (events,) = {
        path.parent for path in folder.rglob("events.out.tfevents.*") if path.parent.name == "novelview"
    }
    board = EventAccumulator(str(events)).Reload()
    assert [event.step for event in board.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.value for event in board.Scalars("loss")] == pytest.approx(losses(folder))
    validation = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    assert [event.value for event in board.Scalars("validation/loss")] == pytest.approx(
        [line["loss"] for line in validation]
    )


def test_a_tracker_that_cannot_be_used_is_said_before_anything_is_made(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="tensorboard, wandb or none, got 'paper'"):
        train(changed(config, tracker="paper"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package wandb; pip install wandb"):
        train(changed(config, tracker="wandb"))
    assert not Path(config.output_dir).exists()


@pytest.mark.slow
def test_samples_are_measured_against_the_truth(config: TrainConfig, tmp_path: Path) -> None:
    pipeline = open_pipeline(config, load_encoder(config.encoder))
    pairs = validation_pairs(config, open_views(config).split(0.4)[1])
    found = measure_samples(config, pipeline, pairs, tmp_path / "sheet.png")
    noise = [torch.Generator().manual_seed(mixed(config.seed, number, 3)) for number in range(len(pairs))]
    errors = [
        (pipeline(p.condition, p.pose[None], generator=[g], steps=10, scale=2.0)[0] - p.target)
        .square()
        .mean()
        for p, g in zip(pairs, noise, strict=True)
    ]
    assert found["sample_mse"] == pytest.approx(torch.stack(errors).mean().item(), rel=1e-3)
    assert found["sample_judge_distance"] > 0


@pytest.mark.slow
def test_a_resumed_training_ends_at_the_same_bits(config: TrainConfig, tmp_path: Path) -> None:
    import shutil

    train(config)
    again = changed(config, output_dir=str(tmp_path / "again"))
    train(again)
    folder = tmp_path / "again"
    # As if it had been killed after update 3: the last checkpoint is that of update 2.
    shutil.rmtree(folder / "checkpoints" / "step-000004")
    shutil.rmtree(folder / "model")
    train(changed(again, resume=True))
    whole, resumed = weights(tmp_path / "out"), weights(folder)
    assert all(torch.equal(whole[name], value) for name, value in resumed.items())
    assert losses(folder) == losses(tmp_path / "out")


def test_the_loss_is_the_mean_of_each_samples_own(config: TrainConfig) -> None:
    """Batches do not matter: a sample's timestep, noise and dropped condition follow from its number."""
    views, _ = open_views(config).split(config.held_out)
    pipeline = open_pipeline(config, load_encoder(config.encoder))
    samples, sampler = Samples(Pairs(views, config.seed, 100)), make_sampler(config, 1000)

    def loss(*numbers: int) -> float:
        batch = collate([samples[number] for number in numbers])
        return loss_of(pipeline, pipeline.model.eval(), batch, sampler, config, 0.0).item()

    assert loss(3, 4, 5) == pytest.approx((loss(3) + loss(4) + loss(5)) / 3, rel=1e-5)


def test_the_loss_is_the_error_of_the_velocity(config: TrainConfig) -> None:
    views, _ = open_views(config).split(config.held_out)
    pipeline = open_pipeline(config, load_encoder(config.encoder))
    seen: list[tuple[Tensor, ...]] = []

    class Spy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, *given: Any) -> Tensor:
            seen.append(given)
            return torch.zeros_like(given[0])

    batch = collate([Samples(Pairs(views, 0, 9))[number] for number in range(4)])

    def fixed(progress: float, count: int, generator: torch.Generator) -> Tensor:
        return torch.tensor([300])

    found = loss_of(pipeline, Spy(), batch, fixed, config, 0.0)
    x_t, t, latent = seen[0][:3]
    assert t.tolist() == [300] * 4
    abar = pipeline.scheduler.alphas_cumprod[300]
    x = batch.target * 2 - 1
    noise = (x_t - abar.sqrt() * x) / (1 - abar).sqrt()
    assert abs(noise.std().item() - 1) < 0.05
    torch.testing.assert_close(latent, batch.condition * 2 - 1)
    torch.testing.assert_close(
        found, mse_loss(abar.sqrt() * noise - (1 - abar).sqrt() * x, torch.zeros_like(x))
    )


@pytest.mark.slow
def test_the_rate_rises_and_falls_as_published() -> None:
    config = TrainConfig()
    model: Any = _Model()
    optimiser, schedule = make_optimiser(model, config)
    found = {}
    for update in range(30_001):
        if update in (100, 200, 15_100, 30_000):
            found[update] = schedule.get_last_lr()
        optimiser.step()
        schedule.step()
    for update, expected in ((100, 5e-5), (200, 1e-4), (15_100, 5.5e-5), (30_000, 1e-5)):
        assert found[update] == pytest.approx([expected, 10 * expected], rel=1e-3)


class _Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unet, self.token = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)


def test_the_average_is_its_closed_form() -> None:
    """Three steps of diffusers' average: decays 0, then min(0.9, 2/11), then min(0.9, 3/12)."""
    from diffusers.training_utils import EMAModel

    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    average = EMAModel([parameter], decay=0.9)
    for value in (2.0, 3.0, 5.0):
        parameter.data.fill_(value)
        average.step([parameter])
    second = 2 / 11 * 2 + 9 / 11 * 3
    assert average.shadow_params[0].item() == pytest.approx(3 / 12 * second + 9 / 12 * 5)


def test_processes_share_the_running_numbers() -> None:
    config = TrainConfig(batch=2, accumulate=2, iterations=3)
    whole = [
        n for batch in numbers_of(TrainConfig(batch=4, accumulate=2, iterations=3), 0, 0, 1) for n in batch
    ]
    parts = [list(numbers_of(config, 0, process, 2)) for process in (0, 1)]
    assert (
        [n for pair in zip(*parts, strict=True) for batch in pair for n in batch] == whole == list(range(24))
    )
    assert list(numbers_of(config, 2, 1, 2)) == parts[1][4:]


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_same_samples(config: TrainConfig, tmp_path: Path) -> None:
    train(changed(config, batch=4, output_dir=str(tmp_path / "one")))
    options = vars(changed(config, output_dir=str(tmp_path / "two")))
    words = [f"{name}={'null' if value is None else value}" for name, value in options.items()]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-m", "distill.lab.novel_view.train", *words],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)


def said(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(options)
    message = (
        str(caught.value.code) if isinstance(caught.value.code, str) else capsys.readouterr().err.strip()
    )
    assert "\n" not in message
    return message


def test_wrong_options_get_one_line(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [
        f"{name}={getattr(config, name)}" for name in ("data", "init", "encoder", "views", "size", "tracker")
    ]
    good += ["precision=no", "workers=0", f"output_dir={tmp_path / 'x'}"]
    assert "Could not override 'iteratons'" in said(capsys, "iteratons=3")
    assert "recipe" in said(capsys, "recipe=none_such")
    assert "timestep_sampling must be truncated_normal, uniform or power, got 'cosine'" in said(
        capsys, *good, "timestep_sampling=cosine"
    )
    assert "data= is needed" in said(capsys, *good, "data=''", f"output_dir={tmp_path / 'a'}")
    assert "matches no shard" in said(capsys, *good, "data=none/*.tar", f"output_dir={tmp_path / 'b'}")
    assert "init must be a folder" in said(capsys, *good, "init=nowhere", f"output_dir={tmp_path / 'c'}")
    turned = write_start(tmp_path / "turned", latent=False)
    (turned / "conditioning").mkdir()
    (turned / "conditioning" / "config.json").write_text('{"turn": {"tokens": 4}}')
    save_file({"x": torch.zeros(1)}, turned / "conditioning" / "model.safetensors")
    assert "has a rotated code; add code=true, or begin from another folder" in said(
        capsys, *good, f"init={turned}", f"output_dir={tmp_path / 'e'}"
    )
    assert "encoder must be the folder of an image encoder" in said(
        capsys, *good, "encoder=nowhere", f"output_dir={tmp_path / 'd'}"
    )


@pytest.mark.slow
def test_a_folder_of_another_training_is_left_alone(config: TrainConfig) -> None:
    train(config)
    with pytest.raises(ValueError, match="already holds this training; add resume=true"):
        train(config)
    with pytest.raises(ValueError, match=r"holds a training with batch=2, not 3; choose another output_dir="):
        train(changed(config, batch=3, resume=True))


@pytest.mark.parametrize("recipe", ["paper", "single-gpu", "embedded", "embedded-gpu"])
def test_recipes_compose(recipe: str) -> None:
    from hydra import compose, initialize_config_module
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    ConfigStore.instance().store(name="novelview_schema", node=TrainConfig)
    with initialize_config_module("distill.conf.novelview", version_base="1.3"):
        made = OmegaConf.to_object(compose("train", overrides=[f"recipe={recipe}"]))
    assert isinstance(made, TrainConfig)
    samples = {"paper": 48 * 4, "single-gpu": 48 * 4 * 8, "embedded": 32, "embedded-gpu": 256}[recipe]
    assert made.batch * made.accumulate == samples
