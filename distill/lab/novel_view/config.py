"""Options of a novel-view training: what they are, which go together, and the folder that remembers them."""

from __future__ import annotations

import glob
import importlib.resources
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from distill.files.atomic import write_atomic
from distill.files.paths import user_path
from distill.lab.novel_view.levels import Law
from distill.lab.novel_view.views import protocol_of
from distill.priors.novel_view.code import TurnOptions


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
        code: tell the UNet of a rotated code, which is trained first.
        tokens: that are made of the code for the UNet to attend to; 0 leaves the picture's one token.
        film: add a projection of the code to the UNet's time embedding.
        draft: height and width of the thumbnail that the code draws for the UNet's input, 0 for none.
        code_iterations: updates of the code alone.
        code_batch: samples of such an update in one process.
        code_rate: peak learning rate of the code.
        code_again: train the code of a model that has one on as well, instead of the UNet alone.
        code_keep: weight of a loss that keeps the codes of usual pairs as they are, see ``stages.CodeRecipe.keep``; needs
            ``code_again`` and ``in_memory``.
        offset: how far objects are from the axis that the cameras go round, at most, scene units; saved with the model. Null is
            what the ``protocol.json`` of the renders, or beside the shards, says, 0 without one.
        views: pictures of each object.
        size: their height and width, pixels.
        held_out: share of the objects, the last ones, that are validated on.
        timestep_sampling: ``truncated_normal``, ``uniform`` or ``power``.
        mean: of the timesteps' normal, fraction of all.
        std: of the timesteps' normal, fraction of all.
        low: exponent of the power law at first; a low one draws high noise levels.
        high: and at the end.
        until: share of the training after which the exponent rises.
        reach: share of the training after which it stays.
        dropout: probability of each way to drop the condition.
        iterations: updates.
        batch: samples at a time in one process.
        accumulate: batches to an update.
        learning_rate: peak, of the UNet.
        final_rate: at the end, reached along a cosine.
        warmup: updates over which the rate rises; in memory, a fiftieth of the training.
        token_rate: the conditioning's rate over the UNet's.
        weight_decay: of AdamW.
        clip_norm: largest gradient norm, 0 for none.
        ema: decay of the weights' moving average, 0 for none.
        precision: ``no``, ``fp16`` or ``bf16``.
        gradient_checkpointing: compute activations twice to save memory.
        in_memory: keep all pictures and features on the device; for models of pixels, in one process. What is drawn then
            follows from a generator that is saved, and timesteps are stratified over a batch.
        minutes: in memory, that the training lasts instead of its updates.
        code_share: of ``minutes``, for the code.
        save_minutes: in memory, between checkpoints.
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
        resume: continue from the newest checkpoint.
    """

    data: str = ""
    output_dir: str = "novelview"
    init: str = ""
    encoder: str = ""
    layers: list[int] | None = None
    amalgamation: bool = True
    norm: bool = True
    code: bool = False
    tokens: int = 4
    film: bool = True
    draft: int = 16
    code_iterations: int = 8000
    code_batch: int = 256
    code_rate: float = 1e-3
    code_again: bool = False
    code_keep: float = 0.0
    offset: float | None = None
    views: int = 12
    size: int = 256
    held_out: float = 0.01
    timestep_sampling: str = "truncated_normal"
    mean: float = 1.0
    std: float = 0.2
    low: float = 0.12
    high: float = 0.7
    until: float = 0.4
    reach: float = 0.9
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
    in_memory: bool = False
    minutes: float | None = None
    code_share: float = 0.18
    save_minutes: float = 1.0
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
        "save_minutes",
    }
)
#: The least that numbers may be, and those that must be above 0.
LEAST = {
    "views": 2, "size": 8, "iterations": 1, "batch": 1, "accumulate": 1, "warmup": 0, "workers": 0, "log_every": 1,
    "validate_every": 0, "validation_pairs": 1, "validation_samples": 0, "checkpoint_every": 1, "keep_checkpoints": 1,
    "final_rate": 0, "token_rate": 0, "weight_decay": 0, "clip_norm": 0,
}  # fmt: skip
POSITIVE = ("learning_rate", "save_minutes")
#: What ``timestep_sampling`` may be, and the name of that law in ``levels``.
LAWS = {"truncated_normal": "normal", "uniform": "uniform", "power": "power"}


def check(config: TrainConfig) -> None:
    """Refuse options that are wrong or do not go together, before anything is loaded or made.

    Raises:
        ValueError: in one line.
    """
    _check_numbers(config)
    check_tracker(config.tracker)
    law_of(config)
    turn_of(config)
    if config.code and not min(config.code_iterations, config.code_batch, config.code_rate) > 0:
        raise ValueError(
            "code_iterations, code_batch and code_rate must be positive, got "
            f"{config.code_iterations}, {config.code_batch} and {config.code_rate}"
        )
    if not config.code:
        plain = TrainConfig()
        told = [n for n in ("tokens", "film", "draft") if getattr(config, n) != getattr(plain, n)]
        if told:
            raise ValueError(
                f"{told[0]}={getattr(config, told[0])} is made of a rotated code; add code=true, or leave it out"
            )
        if config.code_again:
            raise ValueError("code_again=true trains a rotated code on; add code=true, or leave it out")
    if not config.code_keep >= 0:
        raise ValueError(f"code_keep must be at least 0, got {config.code_keep:g}")
    if config.code_keep and not (config.code_again and config.in_memory):
        raise ValueError(
            f"code_keep={config.code_keep:g} needs code_again=true and in_memory=true; add them, or leave it out"
        )
    _check_memory(config)


def _check_numbers(config: TrainConfig) -> None:
    for name, least in LEAST.items():
        if not getattr(config, name) >= least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(config, name)}")
    for name in POSITIVE:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be above 0, got {getattr(config, name)}")
    for name in ("held_out", "dropout", "ema"):
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} must be in [0, 1), got {getattr(config, name)}")
    if config.precision not in ("no", "fp16", "bf16"):
        raise ValueError(f"precision must be no, fp16 or bf16, got {config.precision!r}")


def _check_memory(config: TrainConfig) -> None:
    if not config.in_memory:
        if config.minutes is not None:
            raise ValueError(
                f"minutes={config.minutes:g} needs in_memory=true; give iterations= (and code_iterations=) without it"
            )
        return
    if config.minutes is not None and not (config.minutes > 0 and 0 < config.code_share < 1):
        raise ValueError(
            f"minutes must be positive and code_share within 0 and 1, got {config.minutes} and {config.code_share}"
        )
    if config.accumulate != 1:
        raise ValueError(
            f"in_memory=true makes no batches of parts: give accumulate=1, got {config.accumulate}"
        )
    if config.cache is not None:
        raise ValueError("in_memory=true keeps the features in memory; leave cache= out")
    if config.precision == "fp16":
        raise ValueError("in_memory=true computes in bf16 or in single precision; give precision=bf16 or no")
    if not config.ema:
        raise ValueError("in_memory=true keeps a moving average; give ema= above 0, for example 0.999")


def law_of(config: TrainConfig) -> Law:
    """The timesteps' law.

    Raises:
        ValueError: there is none of that name, or one of its numbers is out of range.
    """
    if config.timestep_sampling not in LAWS:
        raise ValueError(
            f"timestep_sampling must be truncated_normal, uniform or power, got {config.timestep_sampling!r}"
        )
    kind = LAWS[config.timestep_sampling]
    return Law(kind, config.low, config.high, config.until, config.reach, config.mean, config.std)


def turn_of(config: TrainConfig) -> TurnOptions | None:
    """What the UNet is told of a rotated code, None without one.

    Raises:
        ValueError: it is given nothing.
    """
    return TurnOptions(config.tokens, config.film, config.draft) if config.code else None


def offset_of(config: TrainConfig) -> float:
    """How far from the axis the objects of the renders are, at most, scene units.

    Raises:
        ValueError: the renders say otherwise, or what they say cannot be read.
    """
    data = user_path(config.data)
    shards = config.data.endswith(".tar")
    folders = map(Path, sorted(glob.glob(str(data.parent)))) if shards else [data]
    said = {folder: number for folder in folders if (number := _offset_in(folder)) is not None}
    if config.offset is None:
        return max(said.values(), default=0.0)
    for folder, number in said.items():
        if number != config.offset:
            raise ValueError(
                f"offset={config.offset:g}, but {folder / 'protocol.json'} says {number:g}; leave offset= out"
            )
    return config.offset


def _offset_in(folder: Path) -> float | None:
    """What the ``protocol.json`` of renders or shards says; None without one."""
    said = protocol_of(folder)
    number = said.get("offset", 0.0)
    if not isinstance(number, (int, float)):
        raise ValueError(f"{folder / 'protocol.json'} must have a number as offset, got {number!r}")
    return float(number) if said else None


def check_tracker(name: str) -> None:
    """Refuse a tracker that is unknown or not installed.

    Raises:
        ValueError: in one line.
    """
    if name not in ("tensorboard", "wandb", "none"):
        raise ValueError(f"tracker must be tensorboard, wandb or none, got {name!r}")
    if name != "none" and importlib.util.find_spec(name) is None:
        raise ValueError(f"tracker={name} needs the package {name}; pip install {name}, or use tracker=none")


def refuse(folder: Path, config: TrainConfig) -> None:
    """Refuse the folder of another training, or of this one without ``resume``.

    Raises:
        ValueError: it is one.
    """
    path, said = folder / "config.json", asdict(config)
    if path.exists():
        # Options that a training of an earlier version did not have were what they are by default.
        before = asdict(TrainConfig()) | json.loads(path.read_text())
        changed = [name for name in said if name not in FREE and before[name] != said[name]]
        if changed:
            raise ValueError(
                f"{folder} holds a training with {changed[0]}={before[changed[0]]!r}, not {said[changed[0]]!r}; choose "
                "another output_dir="
            )
        if not config.resume:
            raise ValueError(
                f"{folder} already holds this training; add resume=true, or choose another output_dir="
            )


def claim(folder: Path, config: TrainConfig) -> None:
    """Create the folder, or find it again with ``resume``; writes ``config.json``.

    Raises:
        ValueError: it holds another training, or this one without ``resume``.
    """
    refuse(folder, config)
    path = folder / "config.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(asdict(config), indent=2) + "\n")


def recipes() -> list[str]:
    """The names that ``recipe=`` takes."""
    folder = importlib.resources.files("distill.conf.novelview") / "recipe"
    return sorted(Path(found.name).stem for found in folder.iterdir())


def compose(overrides: Sequence[str]) -> TrainConfig:
    """Compose a configuration of Hydra's overrides, for example ``["recipe=embedded", "data=renders"]``.

    Raises:
        ValueError: an option is unknown or of another type, in one line.
    """
    from hydra import compose as composed
    from hydra import initialize_config_module
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    ConfigStore.instance().store(name="novelview_schema", node=TrainConfig)
    try:
        with initialize_config_module("distill.conf.novelview", version_base="1.3"):
            config = OmegaConf.to_object(composed("train", overrides=list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(" ".join(str(error).split())) from error
    assert isinstance(config, TrainConfig)
    return config
