"""The run's configuration: structured, composed by Hydra, the same from a script and from the command line."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


@dataclass
class Penalties:
    """Weights of the renderer's regularisers and of the distances to an input picture, numbers or schedules.

    A weight of 0 is not computed.
    """

    sparsity: Any = 0.0
    opaqueness: Any = 0.0
    orientation: Any = 0.0
    smoothness: Any = 0.0

    reference_rgb: Any = 0.0
    reference_mask: Any = 0.0
    reference_depth: Any = 0.0
    reference_normal: Any = 0.0


@dataclass
class Reference:
    """How the picture of ``image`` was taken, and how its object is cut out; see ``distill.novelview.picture``.

    Without an elevation, it is estimated. ``depth`` and ``normal`` name pictures as large as the image: nearness, bright
    for near, and normals in the camera's frame, (n + 1) / 2.
    """

    elevation_deg: float | None = None
    azimuth_deg: float = 0.0
    distance: float = 3.2
    fov_y_deg: float = 40.0
    background: str = "auto"
    recentre: bool = True
    fill: float = 0.75
    depth: str | None = None
    normal: str | None = None


@dataclass
class PriorOptions:
    """How a prior is loaded, see ``distill.load_prior``; ``dtype`` is ``auto``, ``float32``, ``bfloat16`` or ``float16``.

    Each of ``loras`` is ``path`` or ``path:weight``. ``control`` is what the ControlNet is shown: ``depth``, ``normal`` or
    ``mask`` of the scene from each camera, or a picture.
    """

    image_size: int | None = None
    dtype: str = "auto"
    checkpointing: bool = False
    compile: bool = False
    loras: list[str] = field(default_factory=list)
    controlnet: str | None = None
    control: str | None = None
    control_scale: float = 1.0
    prompt_weighting: bool = False


@dataclass
class Views:
    """How a camera's side is told in words, see ``distill.prompts``.

    ``front``, ``side``, ``back`` and ``overhead`` are whole prompts instead of the prompt with the view's word; ``file``
    is a YAML file with any of them.
    """

    front: str | None = None
    side: str | None = None
    back: str | None = None
    overhead: str | None = None
    file: str | None = None
    front_deg: float = 45.0
    overhead_deg: float = 60.0


@dataclass
class PerpNeg:
    """Stay away from the views that a camera does not see; each curve is a, b, c of a exp(-b r) + c."""

    enabled: bool = False
    front_from_side: list[float] = field(default_factory=lambda: [4.0, 0.5, -2.426])
    side_from_front: list[float] = field(default_factory=lambda: [4.0, 0.5, -2.426])
    side_from_back: list[float] = field(default_factory=lambda: [1.0, 0.5, -0.606])
    front_from_back: list[float] = field(default_factory=lambda: [1.0, 0.5, 0.967])


@dataclass
class Rendering:
    """Pictures per step, their side in pixels (a number or a schedule), how surfaces are lit, and what memory it takes.

    Attributes:
        at_once: of the batch, how many views are in memory at a time; their gradients add up. None for all.
        recompute: render again on the way back, ``chunk_rays`` rays at a time, rather than keep every sample.
        patch: side of a random window that alone is rendered in full, pixels, amid a picture of ``coarse`` pixels
            resized; None renders all of it.
        latent_until: fraction of the run in which normals and opacity stand for the prior's latent.
    """

    batch: int = 4
    size: Any = 64
    shading: str = "albedo"
    at_once: int | None = None
    chunk_rays: int = 16384
    recompute: bool = False
    patch: int | None = None
    coarse: int = 64
    latent_until: float = 0.0


@dataclass
class Optimiser:
    """Adam: peak learning rates per kind of parameter, and what surrounds the step."""

    encoding: float = 0.01
    mlp: float = 0.01
    background: float = 0.001
    image: float = 0.03
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    eps: float = 1e-15
    clip_norm: float = 0.0
    final_lr: float = 1.0
    ema: float = 0.0
    max_bad_steps: int = 20


@dataclass
class Logging:
    """What is written during a run; intervals in steps, 0 for never."""

    preview_every: int = 100
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    tensorboard: bool = True


@dataclass
class Export:
    """What is made of the finished scene; see ``distill.export.export_asset``."""

    enabled: bool = True
    resolution: int = 128
    faces: int = 10_000
    iso: float | None = None
    largest_component: bool = True
    texture_size: int = 512
    frames: int = 48
    picture_size: int = 192
    elevation_deg: float = 15.0
    up: str = "y"


@dataclass
class Config:
    """One run, or with ``prompts`` one run per line of a file."""

    prompt: str = ""
    prompts: str | None = None
    negative_prompt: str = ""
    source_prompt: str = ""
    image: str | None = None
    novel_view: str = "embedded"
    view_words: str = "auto"
    views: Views = field(default_factory=Views)
    perp_neg: PerpNeg = field(default_factory=PerpNeg)
    unconditional: str = "auto"
    iterations: int = 400
    particles: int = 1
    seed: int = 0
    device: str = "auto"
    prior: str = "embedded"
    prior_options: PriorOptions = field(default_factory=PriorOptions)
    max_vram: str | None = None
    output_dir: str | None = None
    init: str | None = None
    resume: bool = False
    render: Rendering = field(default_factory=Rendering)
    penalties: Penalties = field(default_factory=Penalties)
    optimiser: Optimiser = field(default_factory=Optimiser)
    reference: Reference = field(default_factory=Reference)
    log: Logging = field(default_factory=Logging)
    export: Export = field(default_factory=Export)
    guidance: Any = None
    timesteps: Any = None
    cameras: Any = None
    scene: Any = None


def options_of(target: Callable[..., Any], schedules: bool = False) -> type:
    """A dataclass of a callable's options: its keyword-only parameters, or all where every one has a default.

    With ``schedules``, numbers accept a schedule too: their type is checked by ``schedule``, not by Hydra.
    """
    signature = inspect.signature(target)
    # Where randomness comes from is the run's business, not an option of a part.
    given = ("seed", "generator")
    parameters = [
        p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY and p.name not in given
    ]
    if not parameters:
        parameters = [
            p for p in signature.parameters.values() if p.default is not p.empty and p.name not in given
        ]
    source = target.__init__ if inspect.isclass(target) else target
    hints = typing.get_type_hints(source)
    fields: list[Any] = [
        ("_target_", str, field(default=f"{target.__module__}.{target.__qualname__}")),
        ("_partial_", bool, field(default=True)),
    ]
    for parameter in parameters:
        hint = hints.get(parameter.name, Any)
        kind, default = _config_field(hint, parameter.default)
        if schedules and hint in (float, float | None):
            kind, default = Any, field(default=parameter.default, metadata={"numbers": 1})
        elif schedules and hint == tuple[float, float]:
            kind = Any
            default = field(default_factory=partial(list, parameter.default), metadata={"numbers": 2})
        fields.append((parameter.name, kind, default))
    return dataclasses.make_dataclass(f"{target.__name__}_options", fields)


def _config_field(hint: Any, default: Any) -> tuple[Any, Any]:
    """A field that OmegaConf accepts: Literal becomes str, tuples become lists, what it cannot type is Any."""
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return str, field(default=default)
    if isinstance(default, (list, tuple)):
        items = list(default)
        kinds = {type(item) for item in items}
        element = kinds.pop() if len(kinds) == 1 and kinds <= {int, float, str, bool} else Any
        return list[element], field(default_factory=lambda: list(items))  # type: ignore[valid-type]
    plain = (int, float, str, bool)
    allowed = hint in plain or (
        set(typing.get_args(hint)) - {type(None)} <= set(plain) and len(typing.get_args(hint)) == 2
    )
    return (hint if allowed else Any), field(default=default)


#: What a prior may compute in.
DTYPES = ("auto", "float32", "bfloat16", "float16")
#: Groups whose every number may be a schedule.
SCHEDULED = ("guidance", "timesteps", "cameras")
#: What a schedule's mapping may hold.
SCHEDULE_FIELDS = ("start", "end", "from_fraction", "to_fraction", "from_step", "to_step")


def schedule(name: str, value: Any, iterations: int | None) -> Any:
    """A number as it is, or what a ``Ramp`` says as ``distill.samplers.schedules.Ramp``.

    Args:
        name: of the option, for errors.
        value: a number, or a mapping with the fields of ``Ramp``.
        iterations: of the run, to turn steps into fractions; None where only fractions are allowed.

    Raises:
        ValueError: the value is neither, or mixes fractions with steps.
    """
    from distill.samplers import schedules

    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    said = f"{name} must be a number or a schedule such as {{start:1,end:0,from_fraction:0,to_fraction:1}}"
    if not isinstance(value, Mapping) or "start" not in value:
        raise ValueError(f"{said}, got {value!r}")
    if unknown := [key for key in value if key not in SCHEDULE_FIELDS]:
        raise ValueError(f"{said}, got the field {unknown[0]!r}; the fields are {', '.join(SCHEDULE_FIELDS)}")
    given = {key: number for key, number in value.items() if number is not None}
    if wrong := [number for number in given.values() if not isinstance(number, (int, float))]:
        raise ValueError(f"{said}, got {wrong[0]!r} in it")
    if "start" not in given:
        raise ValueError(f"{said}, got no start")
    for end, missing in (("from", 0.0), ("to", 1.0)):
        step = given.pop(f"{end}_step", None)
        if step is not None and f"{end}_fraction" in given:
            raise ValueError(f"{name} has both {end}_fraction and {end}_step; give one of them")
        if step is not None and iterations is None:
            raise ValueError(f"{name} is given in steps; here only from_fraction and to_fraction are known")
        given.setdefault(f"{end}_fraction", missing if step is None else min(step / (iterations or 1), 1.0))
    try:
        return schedules.Ramp(**given)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def schedules_in(config: DictConfig, group: str) -> dict[str, Any]:
    """The schedules among a group's options, by option; in a range, either end may be one.

    Raises:
        ValueError: what should be a number, a range or a schedule is none.
    """
    target = get_method(config[group]._target_)
    options = OmegaConf.to_container(config[group])
    assert isinstance(options, dict)
    found: dict[str, Any] = {}
    for name, ends in numbers(target).items():
        if options.get(name) is None:
            continue
        where, value = f"{group}.{name}", options[name]
        if ends == 1:
            made = schedule(where, value, config.iterations)
        elif isinstance(value, list) and len(value) == ends:
            made = tuple(schedule(f"{where}[{i}]", end, config.iterations) for i, end in enumerate(value))
        else:
            raise ValueError(f"{where} must be a list of {ends} numbers or schedules, got {value!r}")
        if any(not isinstance(end, (int, float)) for end in (made if ends > 1 else (made,))):
            found[name] = made
    return found


def numbers(target: Callable[..., Any]) -> dict[str, int]:
    """A callable's options that are numbers, or ranges of them: how many numbers each has."""
    fields = dataclasses.fields(options_of(target, True))
    return {item.name: item.metadata["numbers"] for item in fields if "numbers" in item.metadata}


def plugins() -> dict[str, dict[str, Callable[..., Any]]]:
    """Every group of the command line and its choices."""
    from distill import guidance
    from distill.renderers.image import ImageScene
    from distill.renderers.nerf import HashGridScene
    from distill.samplers import cameras, timesteps

    return {
        "guidance": guidance.available(),
        "timesteps": {name: getattr(timesteps, name) for name in timesteps.__all__},
        "cameras": {"ranges": cameras.ranges},
        "scene": {"hash_grid": HashGridScene, "image": ImageScene},
    }


def register() -> None:
    """Tell Hydra of the schema and of every plug-in."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for group, choices in plugins().items():
        for name, target in choices.items():
            store.store(group=group, name=name, node=options_of(target, schedules=group in SCHEDULED))


def quote(text: str) -> str:
    """Write any text as a value that Hydra's grammar and OmegaConf's interpolation give back unchanged."""
    # A backslash before ${ keeps it literal; one that the text itself has there must be doubled first.
    escaped = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)
    return QuotedString(text=escaped, quote=Quote.single).with_quotes()


def quote_text(override: str) -> str:
    """Quote a value that is plain text whatever it holds: a path, a negative prompt."""
    key, _, value = override.partition("=")
    texts = (
        "output_dir", "init", "prior", "prompts", "negative_prompt", "source_prompt", "image", "novel_view",
        "reference.depth", "reference.normal", "views.front", "views.side", "views.back", "views.overhead", "views.file",
        "prior_options.controlnet", "prior_options.control",
    )  # fmt: skip
    plain = key in texts and value != "null"
    return f"{key}={quote(value)}" if plain and value[:1] not in ("'", '"') else override


def as_overrides(options: Mapping[str, Any]) -> list[str]:
    """Turn Python keywords into command-line options; strings are quoted, so any value is literal."""
    groups = ("guidance", "timesteps", "cameras", "scene", "preset", "tuned", "experiment")

    def literal(value: Any) -> str:
        if isinstance(value, (str, Path)):
            return quote(str(value))
        if isinstance(value, (list, tuple)):
            return f"[{','.join(map(literal, value))}]"
        if isinstance(value, Mapping):
            return f"{{{','.join(f'{name}:{literal(item)}' for name, item in value.items())}}}"
        return "null" if value is None else str(value)

    def write(key: str, value: Any) -> str:
        return f"{key}={value if key in groups and isinstance(value, str) else literal(value)}"

    return [write(key, value) for key, value in options.items()]


def with_preset(overrides: Sequence[str]) -> list[str]:
    """Choose the preset that fits where none is named: a picture's, the embedded prior's, or its family's."""
    keys = {text.partition("=")[0].lstrip("+"): text.partition("=")[2].strip("'\"") for text in overrides}
    fixed = [re.sub(r"^\+experiment=", "experiment=", text) for text in overrides]
    if "preset" not in keys:
        if keys.get("image", "null") not in ("null", ""):
            own = keys.get("novel_view", "embedded") == "embedded"
            fixed.append("preset=embedded_image" if own else "preset=image")
            if keys.get("prompt") and "guidance" not in keys:
                fixed.append("guidance=mix")  # words beside the picture are meant to count
        elif (prior := keys.get("prior", "embedded")) != "embedded":
            fixed.append(f"preset={PRESETS.get(pipeline_of(prior), 'none')}")
    return fixed


#: Which preset fits a pipeline of diffusers.
PRESETS = {
    "StableDiffusionPipeline": "latent",
    "LatentConsistencyModelPipeline": "latent",
    "StableDiffusionXLPipeline": "latent",
    "PixArtAlphaPipeline": "latent",
    "PixArtSigmaPipeline": "latent",
    "IFPipeline": "pixel",
    "StableDiffusion3Pipeline": "flow",
    "FluxPipeline": "flow",
    "SanaPipeline": "flow",
}


def pipeline_of(prior: str) -> str:
    """The pipeline's class of a prior in the table or in a local folder, empty where neither says it."""
    from distill.priors.table import MODELS

    if prior in MODELS:
        return MODELS[prior].pipeline
    try:
        index = json.loads((Path(prior).expanduser() / "model_index.json").read_text())
        return str(index.get("_class_name", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Compose and check a configuration.

    Raises:
        ValueError: an option is unknown or has the wrong type or value, in one line.
    """
    register()
    with initialize_config_module("distill.conf", version_base="1.3"):
        try:
            config = compose("config", overrides=with_preset(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise ValueError(explain(error)) from error
    check(config)
    return config


def known_options(config: Any = Config, prefix: str = "") -> list[str]:
    """Dotted names of the schema's options."""
    names = []
    for item in dataclasses.fields(config):
        names.append(prefix + item.name)
        inner = item.default_factory() if item.default_factory is not dataclasses.MISSING else None
        if dataclasses.is_dataclass(inner):
            names += known_options(type(inner), f"{prefix}{item.name}.")
    return names


def explain(error: BaseException) -> str:
    """Say in one line what is wrong with an option, and the remedy."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    text = str(error)
    if found := re.search(r"Could not find '(\w+)/([^']*)'", text):
        group, name = found.groups()
        choices = plugins().get(group, {})
        known = f"; there are {', '.join(choices)}" if choices else ""
        return f"unknown {group} {name!r}{known}"
    if found := re.search(r"Could not override '([^']+)'", text) or re.search(
        r"Key '([^']+)' (?:is )?not in", text
    ):
        name = found[1]
        options = [*known_options(), *_plugin_options()]
        close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"unknown option {name!r}; {hint}'distill --help' lists the options"
    if found := re.search(r"Value '(.*?)' .*could not be converted to (\w+)", str(cause), re.DOTALL):
        key = getattr(cause, "full_key", None) or "an option"
        return f"{key} must be of type {found[2].lower()}, got {found[1]!r}"
    lines = [
        line.strip() for line in f"{text}\n{cause if cause is not error else ''}".splitlines() if line.strip()
    ]
    return f"could not read the options: {'; '.join(lines[:2])}; quote values as the shell and Hydra need"


def _plugin_options() -> list[str]:
    return [
        f"{group}.{item.name}"
        for group, choices in plugins().items()
        for target in choices.values()
        for item in dataclasses.fields(options_of(target))
        if not item.name.startswith("_")
    ]


def check(config: DictConfig) -> None:
    """Check values that types cannot.

    Raises:
        ValueError: a value is out of range.
    """
    positive = (
        "iterations", "particles", "render.batch", "render.at_once", "render.chunk_rays", "export.resolution",
        "export.faces",
    )  # fmt: skip
    for name in positive:
        value = OmegaConf.select(config, name)
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be at least 1, got {value}; leave it out for the default")
    if not 0 <= config.render.latent_until <= 1:
        raise ValueError(
            f"render.latent_until is a fraction of the run, in [0, 1], got {config.render.latent_until:g}"
        )
    if config.max_vram is not None:
        bytes_of(config.max_vram)
    for group in SCHEDULED:
        schedules_in(config, group)
    for name in config.penalties:
        schedule(f"penalties.{name}", config.penalties[name], config.iterations)
    size = schedule("render.size", config.render.size, config.iterations)
    for end in (size,) if isinstance(size, (int, float)) else (size.start, size(1.0)):
        if end < 8:
            raise ValueError(
                f"render.size must be at least 8 pixels, got {end:g}; leave it out for the default"
            )
    if config.prior_options.dtype not in DTYPES:
        raise ValueError(
            f"prior_options.dtype must be one of {', '.join(DTYPES)}, got {config.prior_options.dtype!r}"
        )
    if config.prior_options.controlnet and not config.prior_options.control:
        raise ValueError(
            "prior_options.controlnet needs prior_options.control: depth, normal or mask of the scene, or a picture"
        )
    for name in ("front_deg", "overhead_deg"):
        if not 0 < config.views[name] <= 90:
            raise ValueError(
                f"views.{name} must be above 0 and at most 90 degrees, got {config.views[name]:g}"
            )
    if config.prompt and config.prompts:
        raise ValueError("give a prompt or prompts=FILE, not both")
    if not config.prompt.strip() and config.prompts is None and not config.image:
        raise ValueError(
            'the prompt is empty; say what to make, for example: distill "a red mug", or give a picture: image=FILE'
        )
    if config.image:
        check_image(config)
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", config.device):
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, got {config.device!r}")


def bytes_of(text: str) -> float:
    """Read a size such as ``12GB`` or ``11.5 GiB``.

    Raises:
        ValueError: it is none.
    """
    units = {"MB": 1e6, "GB": 1e9, "MIB": 2**20, "GIB": 2**30}
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MG]i?B)", text.strip(), re.IGNORECASE)
    if not found:
        raise ValueError(f"max_vram must be a size such as 12GB, got {text!r}")
    return float(found[1]) * units[found[2].upper()]


def check_image(config: DictConfig) -> None:
    """Check what a picture does not go with.

    Raises:
        ValueError: an option is out of range, or cannot be used with a picture.
    """
    said = config.reference
    if config.prompts is not None or config.particles > 1:
        raise ValueError("image= makes one asset; leave out prompts= and particles=")
    if config.max_vram is not None and not config.prompt.strip():
        raise ValueError(
            "max_vram= forecasts priors of text, not novel-view models; leave it out, and choose render.at_once= and "
            "render.recompute="
        )
    if config.scene._target_.endswith("ImageScene"):
        raise ValueError("image= shapes a scene that fills space; leave out scene=image")
    if config.scene.get("background", "white") != "white":
        raise ValueError(
            f"image= shows its object over white, so scene.background must be white, got {config.scene.background}"
        )
    for name, low, high in (
        ("elevation_deg", -89, 89),
        ("distance", 1, 100),
        ("fov_y_deg", 1, 150),
        ("fill", 0.1, 1),
    ):
        value = said[name]
        if value is not None and not low <= value <= high:
            raise ValueError(f"reference.{name} must lie in [{low}, {high}], got {value}")
    if not config.prompt.strip() and config.guidance._target_.rpartition(".")[2] in ("mix", "vsd", "VSD"):
        raise ValueError("this guidance mixes a picture with text; add a prompt")


#: First words of every option that the command line knows, groups included.
KEYS = frozenset(
    {item.name for item in dataclasses.fields(Config)} | {"preset", "tuned", "experiment", "hydra"}
)
