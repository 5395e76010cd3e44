"""Train a novel-view model: ``accelerate launch -m distill.lab.novel_view.train data=RENDERS encoder=FOLDER recipe=paper``.

It trains the design of Zero-1-to-3 and Efficient-3DiM. The model that ships has a rotated code as well, and is trained in
two stages by ``examples/embedded/train_novel_view.py``.

Which pairs, timesteps, noise and dropped conditions a sample gets follows from the seed and its running number alone, so
that a resumed training, or one on another number of processes, goes on as the first would have.
"""

from __future__ import annotations

import glob
import importlib.util
import json
import logging
import math
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from distill.contracts import TimestepSampler
from distill.files.atomic import write_atomic
from distill.files.checkpoint import load_checkpoint, save_checkpoint
from distill.lab.novel_view.cache import FeatureCache, build_cache
from distill.lab.novel_view.pairs import Pair, Pairs, draw_indices, mixed, read_pair
from distill.lab.novel_view.views import Views, from_folder, from_shards
from distill.priors.novel_view.features import Encoder, Features, load_encoder
from distill.priors.novel_view.model import NovelView, build, draw_dropout, widen
from distill.priors.novel_view.pipeline import (
    PUBLISHED,
    NovelViewPipeline,
    read_conditioning,
    take_conditioning,
)
from distill.priors.predictions import from_noise
from distill.run.journal import Interrupted, keep_lines_before, stop_signals
from distill.samplers import timesteps

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers.training_utils import EMAModel

log = logging.getLogger(__name__)


@dataclass
class TrainConfig:
    """One training. The defaults are the paper's; see ``distill/conf/novelview``.

    Attributes:
        data: folder of renders, or a pattern of shards that ends in ``.tar``.
        output_dir: of checkpoints, metrics, samples and the model.
        init: folder of a text-to-image or novel-view pipeline in the diffusers layout to begin from.
        encoder: folder of the image encoder.
        layers: of the encoder's maps; null for four, evenly spaced.
        amalgamation: add the maps to the UNet.
        norm: normalise the image token.
        views: pictures of each object.
        size: their height and width, pixels.
        held_out: share of the objects, the last ones, that are validated on.
        timestep_sampling: ``truncated_normal`` or ``uniform``.
        mean: of the timesteps' normal, fraction of all.
        std: of the timesteps' normal, fraction of all.
        dropout: probability of each way to drop the condition.
        iterations: updates.
        batch: samples at a time in one process.
        accumulate: batches to an update.
        learning_rate: peak, of the UNet.
        final_rate: at the end, reached along a cosine.
        warmup: updates over which the rate rises.
        token_rate: the conditioning's rate over the UNet's.
        weight_decay: of AdamW.
        clip_norm: largest gradient norm, 0 for none.
        ema: decay of the weights' moving average, 0 for none.
        precision: ``no``, ``fp16`` or ``bf16``.
        gradient_checkpointing: compute activations twice to save memory.
        cache: folder of features on disk; null encodes while training.
        workers: processes that read pictures.
        seed: of everything drawn.
        log_every: updates.
        validate_every: updates, 0 for never.
        validation_pairs: how many.
        validation_samples: of them drawn and measured, the first on a sheet; 0 for none.
        checkpoint_every: updates.
        keep_checkpoints: the newest.
        tracker: ``tensorboard``, ``wandb`` or ``none``.
        resume: go on from the newest checkpoint.
    """

    data: str = ""
    output_dir: str = "novelview"
    init: str = ""
    encoder: str = ""
    layers: list[int] | None = None
    amalgamation: bool = True
    norm: bool = True
    views: int = 12
    size: int = 256
    held_out: float = 0.01
    timestep_sampling: str = "truncated_normal"
    mean: float = 1.0
    std: float = 0.2
    dropout: float = 0.05
    iterations: int = 30_000
    batch: int = 48
    accumulate: int = 4
    learning_rate: float = 1e-4
    final_rate: float = 1e-5
    warmup: int = 200
    token_rate: float = 10.0
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema: float = 0.9999
    precision: str = "fp16"
    gradient_checkpointing: bool = False
    cache: str | None = None
    workers: int = 4
    seed: int = 0
    log_every: int = 10
    validate_every: int = 1000
    validation_pairs: int = 64
    validation_samples: int = 8
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    tracker: str = "tensorboard"
    resume: bool = False


#: What may change between a training and its resumption.
FREE = frozenset(
    {
        "output_dir",
        "resume",
        "workers",
        "log_every",
        "validation_samples",
        "checkpoint_every",
        "keep_checkpoints",
        "tracker",
    }
)


def open_views(config: TrainConfig) -> Views:
    """The pictures that a configuration names."""
    count, size = config.views, config.size
    if config.data.endswith(".tar"):
        paths = [Path(path) for path in sorted(glob.glob(config.data))]
        if not paths:
            raise ValueError(f"data={config.data} matches no shard")
        return from_shards(paths, count=count, size=size)
    if not config.data:
        raise ValueError(
            "data= is needed: a folder of renders, or a pattern of shards such as 'shards/*.tar'"
        )
    return from_folder(Path(config.data).expanduser(), count=count, size=size)


def open_pipeline(config: TrainConfig, encoder: Encoder) -> NovelViewPipeline:
    """Load the initial model: a novel-view model as it is, or a text-to-image model with its input extended."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    folder = Path(config.init).expanduser()
    if not (folder / "unet").is_dir():
        raise ValueError(f"init must be a folder in the diffusers layout to begin from, got {config.init!r}")
    trained = any((folder / place).is_dir() for place in ("conditioning", *PUBLISHED))
    said, weights = read_conditioning(folder) if trained else ({}, {})
    if said.get("turn"):
        raise ValueError(
            f"the model in init={folder} has a rotated code, which examples/embedded/train_novel_view.py trains; begin from a "
            "text-to-image folder, or from a model without one"
        )
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
    try:
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **options)
        scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
        has_vae = (folder / "vae").is_dir()
        vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", **options) if has_vae else None
    except (OSError, ValueError) as error:
        raise ValueError(f"could not load init={folder}: {str(error).splitlines()[0]}") from error
    if unet.config.in_channels == unet.config.out_channels:
        widen(unet)
    map_width, grid = (encoder.map_width, encoder.grid) if config.amalgamation else (0, 0)
    torch.manual_seed(config.seed)
    model = build(unet, token_width=encoder.token_width, norm=config.norm, map_width=map_width, grid=grid)
    if trained:
        try:
            take_conditioning(model, weights)
        except RuntimeError as error:
            raise ValueError(
                f"the conditioning in init={folder} is of another encoder or amalgamation; give the same encoder=, layers=, "
                "norm= and amalgamation=, or a text-to-image folder to begin from"
            ) from error
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if vae is not None:
        vae.eval().requires_grad_(False)
    return NovelViewPipeline(model.train(), encoder, scheduler, vae)


@dataclass(frozen=True)
class Batch:
    """Samples of a training, on the CPU.

    Attributes:
        condition: pictures, shape ``[batch, 3, size, size]``.
        target: pictures, same shape.
        pose: shape ``[batch, 4]``.
        numbers: running numbers of the samples.
        features: of the conditions, or None where they are encoded while training.
    """

    condition: Tensor
    target: Tensor
    pose: Tensor
    numbers: Sequence[int]
    features: Features | None = None


@dataclass(frozen=True)
class Samples:
    """A training's samples by number, with their features where these are cached."""

    pairs: Pairs
    cache: FeatureCache | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> tuple[int, Pair, Features | None]:
        pair = self.pairs[number]
        return number, pair, self.cache.read(pair.uid, pair.indices[0]) if self.cache else None


def collate(samples: Sequence[tuple[int, Pair, Features | None]]) -> Batch:
    """Stack samples."""
    numbers, pairs, features = zip(*samples, strict=True)
    stacked = {
        name: torch.stack([getattr(pair, name) for pair in pairs]) for name in ("condition", "target", "pose")
    }
    joined = None
    if features[0] is not None:
        joined = Features(torch.stack([f.token for f in features]), torch.stack([f.maps for f in features]))
    return Batch(**stacked, numbers=numbers, features=joined)


def numbers_of(config: TrainConfig, start: int, process: int, processes: int) -> Iterator[list[int]]:
    """The running numbers of a process's batches, from update ``start`` on."""
    for micro in range(start * config.accumulate, config.iterations * config.accumulate):
        first = (micro * processes + process) * config.batch
        yield list(range(first, first + config.batch))


def loss_of(
    pipeline: NovelViewPipeline,
    model: nn.Module,
    batch: Batch,
    sampler: TimestepSampler,
    config: TrainConfig,
    progress: float,
) -> Tensor:
    """Mean squared error of the network's own kind of prediction, unweighted, over a batch."""
    device = next(model.parameters()).device
    draws = [torch.Generator().manual_seed(mixed(config.seed, number, 2)) for number in batch.numbers]
    with torch.no_grad():
        space, pairs = pipeline.space, zip(batch.target, draws, strict=True)
        x = torch.cat([space.encode(rgb[None].to(device), generator=g) for rgb, g in pairs])
        latent = torch.cat([space.encode(rgb[None].to(device), scaled=False) for rgb in batch.condition])
        features = batch.features or pipeline.encoder(batch.condition.to(device))
        t = torch.cat([sampler(progress, 1, g) for g in draws]).to(device)
        noise = torch.stack([torch.randn(x.shape[1:], generator=g) for g in draws]).to(x)
        keeps = [draw_dropout(1, g, config.dropout) for g in draws]
        keep_token, keep_latent = (torch.cat(keep).to(device) for keep in zip(*keeps, strict=True))
        abar = pipeline.scheduler.alphas_cumprod.to(x)[t][:, None, None, None]
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        x_t = alpha * x + sigma * noise
        goal = from_noise(pipeline.scheduler.config.prediction_type, noise, x_t, alpha, sigma)
    told = Features(*(value.to(device) for value in vars(features).values()))
    predicted = model(x_t, t, latent, told, batch.pose.to(device), keep_token, keep_latent)
    return nn.functional.mse_loss(predicted.float(), goal.float())


def make_sampler(config: TrainConfig, num_timesteps: int) -> TimestepSampler:
    """The timesteps' law, over all of them."""
    from types import SimpleNamespace

    whole: Any = SimpleNamespace(num_timesteps=num_timesteps)
    if config.timestep_sampling == "uniform":
        return timesteps.uniform(whole, t_min=0.0, t_max=1.0)
    if config.timestep_sampling == "truncated_normal":
        return timesteps.truncated_normal(whole, mean=config.mean, std=config.std)
    raise ValueError(
        f"timestep_sampling must be truncated_normal or uniform, got {config.timestep_sampling!r}"
    )


def make_optimiser(
    model: NovelView, config: TrainConfig
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW, the conditioning at its own rate, and the rate's rise and cosine fall."""
    from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

    conditioning = [p for name, p in model.named_parameters() if not name.startswith("unet.")]
    groups = [
        {"params": list(model.unet.parameters()), "lr": config.learning_rate},
        {"params": conditioning, "lr": config.learning_rate * config.token_rate},
    ]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=config.weight_decay, fused=True)
    schedule = get_cosine_with_min_lr_schedule_with_warmup(
        optimiser, config.warmup, config.iterations, min_lr_rate=config.final_rate / config.learning_rate
    )
    return optimiser, schedule


@dataclass
class Progress:
    """State of a training run."""

    model: NovelView
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    average: EMAModel | None = None
    update: int = 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": dict(self.model.state_dict()),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "update": self.update,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        try:
            self.model.load_state_dict(saved["model"])
        except RuntimeError as error:
            raise ValueError(
                "the checkpoint is of another network; resume with the same init=, encoder= and conditioning"
            ) from error
        self.optimiser.load_state_dict(saved["optimiser"])
        self.schedule.load_state_dict(saved["schedule"])
        if self.average:
            self.average.load_state_dict(saved["average"])
        self.update = saved["update"]


def train(config: TrainConfig) -> Path:
    """Train, or go on; returns the folder of the finished model.

    Raises:
        ValueError: something in the configuration is wrong, in one line.
        Interrupted: a signal asked to stop; a checkpoint holds where it was.
    """
    from accelerate import Accelerator
    from accelerate.utils import set_seed
    from diffusers.training_utils import EMAModel

    check_tracker(config.tracker)
    trackers = None if config.tracker == "none" else config.tracker
    folder = Path(config.output_dir).expanduser()
    accelerator = Accelerator(mixed_precision=config.precision, log_with=trackers, project_dir=str(folder))
    make_sampler(config, 1000)  # a wrong name is said before anything is made
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            claim(folder, config)
    set_seed(config.seed)
    encoder = load_encoder(Path(config.encoder).expanduser(), layers=config.layers, device=accelerator.device)
    views, held_out = open_views(config).split(config.held_out)
    with accelerator.main_process_first():
        cache = build_cache(views, encoder, Path(config.cache).expanduser()) if config.cache else None
    pipeline = open_pipeline(config, encoder)
    pipeline.model.to(accelerator.device)
    if pipeline.vae is not None:
        pipeline.vae.to(accelerator.device)
    optimiser, schedule = make_optimiser(pipeline.model, config)
    average = EMAModel(pipeline.model.parameters(), decay=config.ema) if config.ema else None
    state = Progress(pipeline.model, optimiser, schedule, average)
    if config.resume and (saved := load_checkpoint(folder / "checkpoints", accelerator.device)):
        state.load_state_dict(saved)
        log.info("resuming %s at update %d", folder, state.update)
    # The schedule is stepped here, once per update: a prepared one would step once per process.
    model, prepared = accelerator.prepare(pipeline.model, optimiser)
    samples: Any = Samples(Pairs(views, config.seed, 2**62), cache)
    batches: DataLoader[Any] = DataLoader(
        samples,
        batch_sampler=numbers_of(config, state.update, accelerator.process_index, accelerator.num_processes),
        num_workers=config.workers,
        collate_fn=collate,
        persistent_workers=False,
    )
    sampler = make_sampler(config, pipeline.scheduler.config.num_train_timesteps)
    if trackers:
        shown = {
            name: value if isinstance(value, (int, float, str)) else str(value)
            for name, value in asdict(config).items()
        }
        accelerator.init_trackers("novelview", shown)
    with stop_signals() as stop:
        _loop(
            config,
            folder,
            accelerator,
            state,
            model,
            prepared,
            iter(batches),
            sampler,
            pipeline,
            held_out,
            stop,
        )
    accelerator.end_training()
    if state.update < config.iterations:
        raise Interrupted(
            f"stopped at update {state.update} of {config.iterations}; go on with resume=true: {folder}"
        )
    with _averaged(state):
        if accelerator.is_main_process:
            pipeline.save(folder / "model")
    log.info("the model is in %s", folder / "model")
    return folder / "model"


def _loop(
    config: TrainConfig,
    folder: Path,
    accelerator: Accelerator,
    state: Progress,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: Iterator[Batch],
    sampler: TimestepSampler,
    pipeline: NovelViewPipeline,
    held_out: Views,
    stop: threading.Event,
) -> None:
    main, per_update = (
        accelerator.is_main_process,
        config.batch * config.accumulate * accelerator.num_processes,
    )
    if main:
        for name in ("metrics.jsonl", "validation.jsonl"):
            keep_lines_before(folder / name, state.update + 1)
    bar = tqdm(
        total=config.iterations, initial=state.update, desc="training", unit="update", disable=not main
    )
    since = time.perf_counter()
    while state.update < config.iterations:
        total = torch.zeros((), device=accelerator.device)
        for micro in range(config.accumulate):
            last = micro == config.accumulate - 1
            with nullcontext() if last else accelerator.no_sync(model), accelerator.autocast():
                loss = loss_of(
                    pipeline, model, next(batches), sampler, config, state.update / config.iterations
                )
                accelerator.backward(loss / config.accumulate)
            total += loss.detach() / config.accumulate
        if config.clip_norm:
            accelerator.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimiser.step()
        state.schedule.step()
        optimiser.zero_grad(set_to_none=True)
        state.update += 1
        if state.average:
            state.average.step(state.model.parameters())
        bar.update()
        if state.update % config.log_every == 0 or state.update == config.iterations:
            mean, now = accelerator.reduce(total, "mean").item(), time.perf_counter()
            line = {
                "step": state.update,
                "loss": mean,
                "learning_rate": state.schedule.get_last_lr()[0],
                "samples_per_second": config.log_every * per_update / (now - since),
            }
            since = now
            if main:
                with (folder / "metrics.jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\n")
                accelerator.log({name: value for name, value in line.items() if name != "step"}, state.update)
                bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
        due = config.validate_every and state.update % config.validate_every == 0
        if main and (due or state.update == config.iterations):
            found = validate(config, folder, state, pipeline, held_out)
            accelerator.log({f"validation/{name}": value for name, value in found.items()}, state.update)
            since = time.perf_counter()
        stopping = bool(
            accelerator.reduce(torch.tensor(float(stop.is_set()), device=accelerator.device)).item()
        )
        if main and (
            stopping or state.update % config.checkpoint_every == 0 or state.update == config.iterations
        ):
            save_checkpoint(folder / "checkpoints", state.update, state.state_dict(), config.keep_checkpoints)
        if stopping:
            break
    bar.close()


def check_tracker(name: str) -> None:
    """Refuse a tracker that is unknown or not installed.

    Raises:
        ValueError: in one line.
    """
    if name not in ("tensorboard", "wandb", "none"):
        raise ValueError(f"tracker must be tensorboard, wandb or none, got {name!r}")
    if name != "none" and importlib.util.find_spec(name) is None:
        raise ValueError(f"tracker={name} needs the package {name}; pip install {name}, or use tracker=none")


def claim(folder: Path, config: TrainConfig) -> None:
    """Create the folder, or find it again with ``resume``; writes ``config.json``.

    Raises:
        ValueError: it holds another training, or this one without ``resume``.
    """
    path, said = folder / "config.json", asdict(config)
    if path.exists():
        before = json.loads(path.read_text())
        changed = [name for name in said if name not in FREE and before.get(name) != said[name]]
        if changed:
            raise ValueError(
                f"{folder} holds a training with {changed[0]}={before.get(changed[0])!r}, not {said[changed[0]]!r}; choose "
                "another output_dir="
            )
        if not config.resume:
            raise ValueError(
                f"{folder} already holds this training; add resume=true, or choose another output_dir="
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(said, indent=2) + "\n")


@contextmanager
def _averaged(state: Progress) -> Iterator[None]:
    """The averaged weights, for as long as the context lasts."""
    if state.average is None:
        yield
        return
    state.average.store(state.model.parameters())
    state.average.copy_to(state.model.parameters())
    try:
        yield
    finally:
        state.average.restore(state.model.parameters())


def validation_pairs(config: TrainConfig, views: Views) -> list[Pair]:
    """Fixed pairs of the held-out objects."""
    drawn = [
        draw_indices(number, len(views), views.count, config.seed + 1)
        for number in range(config.validation_pairs)
    ]
    return [read_pair(views, views.uids[place], condition, target) for place, condition, target in drawn]


@torch.no_grad()
def validation_loss(
    config: TrainConfig, pipeline: NovelViewPipeline, pairs: Sequence[Pair], batch: int = 16
) -> float:
    """Mean loss of fixed pairs with fixed noise at timesteps spread evenly, nothing dropped: equal for all recipes."""
    steps = pipeline.scheduler.config.num_train_timesteps
    even = replace(config, dropout=0.0, seed=config.seed + 1)
    total = 0.0
    for start in range(0, len(pairs), batch):
        part = list(enumerate(pairs))[start : start + batch]
        samples = collate([(number, pair, None) for number, pair in part])
        spread = iter([(2 * number + 1) * steps // (2 * len(pairs)) for number, _ in part])

        def evenly(
            progress: float, count: int, generator: torch.Generator, spread: Iterator[int] = spread
        ) -> Tensor:
            return torch.tensor([next(spread)])

        total += len(part) * loss_of(pipeline, pipeline.model, samples, evenly, even, 0.0).item()
    return total / len(pairs)


def validate(
    config: TrainConfig, folder: Path, state: Progress, pipeline: NovelViewPipeline, views: Views
) -> dict[str, float]:
    """Measure the averaged weights, write it down with a sheet of samples, and return it."""
    pairs = validation_pairs(config, views)
    pipeline.model.eval()
    with _averaged(state):
        found = {"loss": validation_loss(config, pipeline, pairs)}
        if config.validation_samples:
            (folder / "samples").mkdir(exist_ok=True)
            path = folder / "samples" / f"update-{state.update:07d}.png"
            found |= measure_samples(config, pipeline, pairs[: config.validation_samples], path)
    pipeline.model.train()
    with (folder / "validation.jsonl").open("a") as file:
        file.write(json.dumps({"step": state.update, **found}) + "\n")
    if not math.isfinite(found["loss"]):
        log.warning("the validation loss is not finite at update %d", state.update)
    return found


def measure_samples(
    config: TrainConfig, pipeline: NovelViewPipeline, pairs: Sequence[Pair], path: Path, rows: int = 8
) -> dict[str, float]:
    """Draw pairs' targets, with few steps, and say how far off they are; the first go on a sheet: input, truth, sample."""
    from PIL import Image

    from distill.lab.novel_view.evaluate import perceptual

    conditions, targets, poses = (
        torch.stack([getattr(pair, name) for pair in pairs]) for name in ("condition", "target", "pose")
    )
    noise = [torch.Generator().manual_seed(mixed(config.seed, number, 3)) for number in range(len(pairs))]
    drawn = pipeline(conditions, poses, generator=noise, steps=10, scale=2.0).cpu()
    conditions, targets = (nn.functional.interpolate(rgb, drawn.shape[-2:]) for rgb in (conditions, targets))
    sheet = torch.cat(
        [part[:rows].movedim(1, 0).flatten(1, 2) for part in (conditions, targets, drawn)], dim=2
    )
    Image.fromarray((sheet.movedim(0, -1).clamp(0, 1) * 255).round().byte().numpy()).save(path)
    name, distance = perceptual()
    each = [distance(*both) for both in zip(drawn, targets, strict=True)]
    return {"sample_mse": (drawn - targets).square().mean().item(), f"sample_{name}": sum(each) / len(each)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Compose the configuration of Hydra options and train."""
    from hydra import compose, initialize_config_module
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    ConfigStore.instance().store(name="novelview_schema", node=TrainConfig)
    try:
        with initialize_config_module("distill.conf.novelview", version_base="1.3"):
            composed = compose("train", overrides=list(sys.argv[1:] if arguments is None else arguments))
        config = OmegaConf.to_object(composed)
        assert isinstance(config, TrainConfig)
        train(config)
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(130)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
