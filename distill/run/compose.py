"""The run's configuration: structured, composed by Hydra, the same from a script and from the command line."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from distill.options import SCHEDULED, options_of
from distill.run.checks import check
from distill.run.schema import Config


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


#: First words of every option that the command line knows, groups included.
KEYS = frozenset(
    {item.name for item in dataclasses.fields(Config)} | {"preset", "tuned", "experiment", "hydra"}
)
