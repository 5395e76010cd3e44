"""The run's configuration: structured, composed by Hydra, the same from a script and from the command line."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from distill.files.paths import user_path
from distill.options import GONE, SCHEDULED, options_of
from distill.run import stages
from distill.run.checks import PARTS, check
from distill.run.earlier import follows_from
from distill.run.generator import check_together, implied_by
from distill.run.idle import check_idle, check_idle_everywhere
from distill.run.scenes import scene_of_run
from distill.run.schema import Config
from distill.run.seeding import literal


def plugins() -> dict[str, dict[str, Callable[..., Any]]]:
    """Return the option groups of the command line and their choices."""
    from distill import guidance, renderers
    from distill.samplers import cameras, timesteps

    losses = guidance.available()
    return {
        "guidance": dict(
            sorted({**losses, **{name: losses[loss] for name, (loss, _) in ALIASES.items()}}.items())
        ),
        "timesteps": {name: getattr(timesteps, name) for name in timesteps.__all__},
        "cameras": {"ranges": cameras.ranges, "groups": cameras.groups},
        "scene": renderers.available(),
    }


#: What Hydra was told of, by group and name.
_told: dict[tuple[str, str], object] = {}


def register() -> None:
    """Tell Hydra of the schema and of every plug-in that it does not know yet: building their nodes takes a third of composing."""
    store = ConfigStore.instance()
    if ("", "schema") not in _told:
        store.store(name="schema", node=Config)
        _told["", "schema"] = Config
    for group, choices in plugins().items():
        for name, target in choices.items():
            if _told.get((group, name)) is not target:
                store.store(group=group, name=name, node=options_of(target, schedules=group in SCHEDULED))
                _told[group, name] = target


def quote(text: str) -> str:
    """Write any text as a value that Hydra's grammar and OmegaConf's interpolation give back unchanged."""
    return QuotedString(text=literal(text), quote=Quote.single).with_quotes()


def quote_text(override: str) -> str:
    """Quote a value that is plain text whatever it holds: a path, a negative prompt."""
    key, _, value = override.partition("=")
    texts = (
        "output_dir", "init", "generator", "generator_mix", "prior", "prompts", "view_address", "negative_prompt", "source_prompt",
        "image", "novel_view", "judge",
        "reference.depth", "reference.normal", "views.front", "views.side", "views.back", "views.overhead", "views.file",
        "prior_options.controlnet", "prior_options.control", "prior_options.config", "prior_options.vae", "mesh", "mesh.file",
        "mesh.up", "mesh.front", "export.name",
    )  # fmt: skip
    plain = re.sub(r"^stage\.\w+\.", "", key) in texts and value != "null"
    return f"{key}={quote(value)}" if plain and value[:1] not in ("'", '"') else override


def as_overrides(options: Mapping[str, Any]) -> list[str]:
    """Turn Python keywords into command-line options; strings are quoted, so any value is literal."""
    groups = ("guidance", "timesteps", "cameras", "scene", "preset", "tuned", "experiment")

    def literal(value: object) -> str:
        if isinstance(value, (str, Path)):
            return quote(str(value))
        if isinstance(value, (list, tuple)):
            return f"[{','.join(map(literal, value))}]"
        if isinstance(value, Mapping):
            return f"{{{','.join(f'{name}:{literal(item)}' for name, item in value.items())}}}"
        return "null" if value is None else str(value)

    def write(key: str, value: object) -> str:
        chosen = re.sub(r"^stage\.\w+\.", "", key) in groups and isinstance(value, str)
        return f"{key}={value if chosen else literal(value)}"

    return [write(key, value) for key, value in options.items()]


#: Names for a loss with a timestep sampler of its own.
ALIASES = {"tp_sds": ("sds", "dreamtime")}


def with_preset(overrides: Sequence[str]) -> list[str]:
    """The words of a command line with those that follow from them, see ``implied``."""
    words = [re.sub(r"^\+(experiment|preset)=", r"\1=", word) for word in overrides]
    words = [re.sub(r"^mesh=(?!\{|null$)", "mesh.file=", word) for word in words]
    words = [
        re.sub(r"^(export\.formats|stages)=(?!null$)['\"]?([\w, ]+)['\"]?$", r"\1=[\2]", word)
        for word in words
    ]
    kept = [word for word in words if _split(word)[0] != "guidance" or _split(word)[1] not in ALIASES]
    return [*(each for word in kept for each in (*cleared(word), word)), *implied(words)]


def cleared(word: str) -> list[str]:
    """Return the word that clears an option for a schedule: Hydra would add a mapping's fields to those that a file gives."""
    found = re.match(r"([a-z][\w.]*)=\{\s*(?:\w+\s*:[^,}]*,\s*)*start\s*:", word)
    return [f"{found[1]}=null"] if found else []


def implied(words: Sequence[str]) -> dict[str, str]:
    """Return the options that a command line implies, each with its reason.

    The preset fits the picture's model, the embedded prior or the prior's family; a picture with a prompt is guided by both; an
    alias stands for a loss and its timesteps; a scene to begin with has its own options.

    Raises:
        ValueError: other timesteps are given beside an alias.
    """
    given = dict(_split(word) for word in words)
    found: dict[str, str] = {}
    if given.get("mesh.file", "null") not in ("null", "") and "scene" not in given:
        found["scene=surface"] = "follows from mesh="
        given["scene"] = "surface"
    if (earlier := given.get("init", "null")) not in ("null", ""):
        before = scene_of_run(earlier, plugins()["scene"])
        same = given.get("scene", before.get("scene")) == before.get("scene")
        followed = {key: value for key, value in before.items() if same and key not in given}
        found |= dict.fromkeys(as_overrides(followed), "follows from init=")
    if (alias := given.get("guidance", "")) in ALIASES:
        found |= _expand(alias, given.get("timesteps"))
    if (folder := given.get("generator", "null")) not in ("null", ""):
        followed = {key: value for key, value in implied_by(folder).items() if key not in given}
        found |= dict.fromkeys(as_overrides(followed), "follows from generator=")
        given.setdefault("prior", str(followed.get("prior", "embedded")))
    if given.get("scene") == "sdf" and (earlier := given.get("init", "null")) not in ("null", ""):
        shared = {name: value for name, value in follows_from(earlier).items() if name not in given}
        found |= dict.fromkeys(as_overrides(shared), "follows from init=")
    if takes_views(given):
        found["cameras=groups"] = f"follows from prior={given['prior']}"
        views = given.get("prior_options.views", "null")
        if views != "null" and "cameras.views" not in given:
            found[f"cameras.views={views}"] = f"follows from prior_options.views={views}"
    if "preset" in given:
        return found
    if given.get("image", "null") not in ("null", "") and shown_picture(given.get("prior", "embedded")):
        found["preset=multi_view_image"] = f"follows from image= with prior={given['prior']}"
    elif given.get("image", "null") not in ("null", ""):
        own = given.get("novel_view", "embedded") == "embedded"
        found["preset=embedded_image" if own else "preset=image"] = "follows from image="
        if given.get("prompt") and "guidance" not in given:
            found["guidance=mix"] = "follows from a prompt with image="
    elif (prior := given.get("prior", "embedded")) != "embedded":
        single = given.get("prior_options.views") == "1"
        found[f"preset={preset_of(prior, single=single)}"] = f"follows from prior={prior}"
    return found


def takes_views(given: Mapping[str, str]) -> bool:
    """Tell whether options name a multi-view prior that is to take several views, so that cameras are drawn in groups."""
    prior = given.get("prior", "embedded")
    if prior == "embedded" or given.get("prior_options.views") == "1" or "cameras" in given:
        return False
    return told_cameras(prior)


def told_cameras(prior: str) -> bool:
    """Tell whether a prior's network is told cameras, from the table, a folder's settings or a file's head."""
    from distill.priors.multi_view.attention import takes_cameras
    from distill.priors.multi_view.published import has_cameras_beside

    if pipeline_of(prior) == "MVDreamPipeline":
        return True
    folder = user_path(prior)
    try:
        said = json.loads((folder / "unet" / "config.json").read_text())
        return takes_cameras(said) or has_cameras_beside(folder)
    except (OSError, ValueError, AttributeError):
        return False


def shown_picture(prior: str) -> bool:
    """Tell whether a prior is ImageDream, which is shown the picture itself: from the table, its settings or its file's head."""
    from distill.priors.header import shapes_of
    from distill.priors.multi_view.published import PROMPTED, marked
    from distill.priors.source import is_single
    from distill.priors.table import MODELS

    if prior in MODELS:
        return MODELS[prior].pictured
    try:
        if is_single(prior):
            return PROMPTED in marked(shapes_of(user_path(prior)))
        return bool(json.loads((user_path(prior) / "unet" / "config.json").read_text()).get("ip_dim"))
    except (OSError, ValueError, AttributeError):
        return False


def _split(word: str) -> tuple[str, str]:
    """A word's key without its plus signs, and its value without quotes."""
    key, _, value = word.partition("=")
    return key.lstrip("+"), value.strip("'\"")


def _expand(alias: str, timesteps: str | None) -> dict[str, str]:
    loss, own = ALIASES[alias]
    if timesteps is not None and not timesteps.startswith(own):
        raise ValueError(
            f"guidance={alias} is {loss} with timesteps={own}, so it does not go with timesteps={timesteps}; leave one of them "
            f"out, or write guidance={loss} timesteps={timesteps}"
        )
    chosen = {f"guidance={loss}": f"follows from guidance={alias}"}
    return chosen if timesteps else {**chosen, f"timesteps={own}": f"follows from guidance={alias}"}


def preset_of(prior: str, *, single: bool = False) -> str:
    """The preset of a prior's family, ``none`` where the family is not known; ``embedded`` for a prior of the embedded world.

    One whose network is told cameras has ``multi_view``, unless it is to take a ``single`` picture at a time.
    """
    from distill.embedded.vocabulary import of_prior
    from distill.priors.families import FAMILIES

    if of_prior(prior):
        return "embedded"
    if not single and told_cameras(prior):
        return "multi_view"
    family = FAMILIES.get(pipeline_of(prior))
    return family.preset if family else "none"


def pipeline_of(prior: str) -> str:
    """The pipeline's class of a prior in the table, in a local folder or in a file, empty where none says it."""
    from distill.priors.header import kind_of, shapes_of
    from distill.priors.source import is_single
    from distill.priors.table import MODELS

    if prior in MODELS:
        return MODELS[prior].pipeline
    try:
        if is_single(prior):
            file = user_path(prior)
            return kind_of(file, shapes_of(file)).pipeline
        index = json.loads((user_path(prior) / "model_index.json").read_text())
        return str(index.get("_class_name", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def compose_config(overrides: Sequence[str], folders: Sequence[str] = ()) -> DictConfig:
    """Compose and check a configuration.

    Args:
        overrides: words of the command line, without the prompt.
        folders: with configuration files of the user's own.

    Raises:
        ValueError: an option is unknown or has the wrong type or value, in one line.
    """
    config, made = compose_any(overrides, folders)
    if len(made) < 2:
        check(config)
        check_together(config)
        check_idle(config, _given(made[0].words if made else overrides))
        return config
    for stage in stages.checkable(made):
        try:
            check(stage.config)
            check_together(stage.config)
        except ValueError as error:
            raise ValueError(f"stage {stage.name}: {error}") from error
    check_idle_everywhere([(stage.config, _given(stage.words)) for stage in stages.checkable(made)])
    return config


def compose_any(
    overrides: Sequence[str], folders: Sequence[str] = ()
) -> tuple[DictConfig, list[stages.Stage]]:
    """Compose a configuration without checks of its values, and its stages, of which a run may have none.

    Raises:
        ValueError: it cannot be composed, or a stage cannot follow another.
    """
    common, own = stages.split(overrides)
    with composing(folders) as search:

        def composed(words: Sequence[str]) -> DictConfig:
            return compose_words([*with_preset(words), *search]).config

        names = stages.named(common, folders)
        if not names:
            config = composed(common)
            # A preset of the user's own may name some.
            names = [] if "experiment" in {_split(word)[0] for word in common} else list(config.stages)
            config.stages = []
            stages.check_own(names, own)
        if not names:
            return config, []
        made = stages.compose_stages(names, common, own, folders, composed)
    return stages.joined(made), made


def _given(words: Sequence[str]) -> list[str]:
    """The options that words give, which are to do something."""
    known = {*known_options(), *_plugin_options()}
    return [name for name in (_split(word)[0] for word in words) if name in known]


class Composed(NamedTuple):
    """A configuration, and the words that it was composed from in the end."""

    config: DictConfig
    words: Sequence[str]


@contextmanager
def composing(folders: Sequence[str] = ()) -> Iterator[list[str]]:
    """Start Hydra on the library's configuration; gives the words that add folders, and makes its errors one line.

    Raises:
        ValueError: an option is unknown or has the wrong type, or a folder is not there.
    """
    paths = [user_path(folder).resolve() for folder in folders]
    if missing := [path for path in paths if not path.is_dir()]:
        raise ValueError(
            f"--config-dir must be a folder with configuration files, and {missing[0]} is not there"
        )
    listed = ",".join(quote(path.as_uri()) for path in paths)
    register()
    # A job of a sweep runs inside Hydra, which does not start twice.
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with one_line(), initialize_config_module("distill.conf", version_base="1.3"):
            yield [f"hydra.searchpath=[{listed}]"] if paths else []
    finally:
        GlobalHydra.instance().hydra = outer


@contextmanager
def one_line() -> Iterator[None]:
    """Make errors of Hydra and of configuration files one line.

    Raises:
        ValueError: instead of them.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(error)) from error
    except (YAMLError, UnicodeDecodeError, OSError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"a configuration file cannot be read as YAML: {said}") from error
    except ValueError as error:
        if not (found := re.search(r"Config group override must be .* Got (\w+)", str(error))):
            raise
        raise ValueError(
            f"{', '.join(PARTS)}, preset and experiment take a name, got a value of type {found[1]}; write for example scene=hash_grid"
        ) from error


def compose_words(words: Sequence[str]) -> Composed:
    """Compose as Hydra does, and once more where a configuration file has chosen an alias; ``composing`` must be open."""
    config = compose("config", overrides=list(words), return_hydra_config=True)
    chosen = str(config.hydra.runtime.choices.guidance)
    if chosen in ALIASES:
        words = [*words, *_expand(chosen, None)]
        config = compose("config", overrides=list(words), return_hydra_config=True)
    with open_dict(config):
        del config["hydra"]
    return Composed(config, words)


def known_options(config: type = Config, prefix: str = "") -> list[str]:
    """Dotted names of the schema's options."""
    names = []
    for item in dataclasses.fields(config):
        names.append(prefix + item.name)
        inner = item.default_factory() if item.default_factory is not dataclasses.MISSING else None
        if dataclasses.is_dataclass(inner):
            names += known_options(type(inner), f"{prefix}{item.name}.")
    return names


#: Options of earlier versions, and what to write now.
MOVED = {
    "optimiser.encoding": "it is now scene.encoding_lr",
    "optimiser.mlp": "it is now scene.mlp_lr",
    "optimiser.background": "it is now scene.background_lr",
    "optimiser.image": "it is now scene.lr, of scene=image",
    "guidance.through": "choose the loss itself, for example guidance=csd; with image=, the picture's model is its prior",
    "guidance.options": "choose the loss itself, for example guidance=csd guidance.weighting=uniform",
}


def explain(error: BaseException) -> str:
    """Say in one line what is wrong with an option, and the remedy."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    text = str(error)
    if found := re.search(r"Could not find '([\w/]+)/([^'/]*)'", text):
        return _unknown_choice(found[1], found[2], re.findall(r"^\t(\S+)$", text, re.MULTILINE))
    if found := re.search(r"In '[^']*': Could not load '([\w/]+)/[^']*'", text):
        return f"{found[1]} takes one name, got a list or a name that is no file; choose one with {found[1]}=NAME"
    if found := re.search(r"Error resolving interpolation '\$\{preset\}.*keys: (.*)", text):
        missing = [name for name in ("preset", *PARTS, "experiment") if name not in found[1].split(", ")]
        return f"{missing[0]} names no part; choose one with {missing[0]}=NAME"
    full = re.search(r"full_key: (\S+)", f"{text}\n{cause}")
    named = r"Could not override '([^']+)'", r"Key '([^']+)' (?:is )?not in"
    if found := next(filter(None, (re.search(pattern, text) for pattern in named)), None):
        return _unknown_option(full[1] if full else found[1])
    if found := re.search(r"Value '(.*?)' .*could not be converted to (\w+)", str(cause), re.DOTALL):
        key = getattr(cause, "full_key", None) or "an option"
        return f"{key} must be of type {found[2].lower()}, got {found[1]!r}"
    if said := _mistyped(f"{text}\n{cause}"):
        return said
    lines = [
        line.strip() for line in f"{text}\n{cause if cause is not error else ''}".splitlines() if line.strip()
    ]
    return f"could not read the options: {'; '.join(lines[:2])}; quote values as the shell and Hydra need"


def _mistyped(error: str) -> str | None:
    """Say what kind of value an option takes, where that is what Hydra complains of."""
    if found := re.search(r"field '([\w.]+)' is not Optional", error):
        return f"{found[1]} takes a plain value, neither null nor a schedule; leave it out for the default"
    given = r"override ([\w.]+)=(.*)\n(?:.*\n)*?"
    if found := re.search(rf"{given}.* is not a ListConfig", error):
        return f"{found[1]} is a list, got {found[2]}; write {found[1]}=[{found[2]}]"
    if found := re.search(rf"{given}Invalid type assigned: \w+ is not a subclass of", error):
        name = next(
            (option for option in known_options() if option.startswith(f"{found[1]}.")), f"{found[1]}.NAME"
        )
        return f"{found[1]} is a group of options, got {found[2]}; set one of them, such as {name}="
    return None


def _unknown_choice(group: str, name: str, there: Sequence[str]) -> str:
    if group == "guidance" and name in GONE:
        return f"guidance={name}: {GONE[name]}"
    choices = plugins().get(group, there)
    return f"unknown {group} {name!r}" + (f"; there are {', '.join(choices)}" if choices else "")


def _unknown_option(name: str) -> str:
    if name in MOVED:
        return f"there is no option {name!r} any more; {MOVED[name]}"
    group, _, option = name.partition(".")
    having = [choice for choice, target in plugins().get(group, {}).items() if option in _options(target)]
    if having:
        others = ", ".join(f"{group}={choice}" for choice in having)
        return (
            f"the chosen {group} has no option {name!r}; {others} {'has' if len(having) == 1 else 'have'} it"
        )
    above, _, last = name.rpartition(".")
    beside = [
        other.rpartition(".")[2] for other in known_options() if above and other.rpartition(".")[0] == above
    ]
    if beside and not difflib.get_close_matches(last, beside, n=1):
        return f"unknown option {name!r}; {above} has {', '.join(beside)}"
    close = difflib.get_close_matches(name, [*known_options(), *_plugin_options()], n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown option {name!r}; {hint}'distill --help' lists the options"


def _plugin_options() -> list[str]:
    return [
        f"{group}.{name}"
        for group, choices in plugins().items()
        for target in choices.values()
        for name in _options(target)
    ]


def _options(target: Callable[..., Any]) -> list[str]:
    return [item.name for item in dataclasses.fields(options_of(target)) if not item.name.startswith("_")]


#: First words of every option that the command line knows, groups included.
KEYS = frozenset(
    {item.name for item in dataclasses.fields(Config)} | {"preset", "tuned", "experiment", "stage", "hydra"}
)
