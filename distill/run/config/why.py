"""Find the origin of an option's value: each file and argument that sets it, the effective one first."""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.default_element import GroupDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigSource
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from distill.embedded.prompt import told, understand
from distill.embedded.vocabulary import of_prior
from distill.run.config.compose import compose_any, compose_words, composing
from distill.run.config.compose_stages import named_stages, split_stages
from distill.run.config.implied import cleared, implied, with_implied
from distill.run.config.known import group_names, known_options, schema_of
from distill.run.config.meanings import meaning_of
from distill.run.config.schema import PARTS

#: Groups that have a choice and no options of their own.
CHOICES = ("preset", "experiment")


class Setting(NamedTuple):
    """A value and what sets it."""

    value: object
    source: str


@dataclass(frozen=True)
class Layer:
    """One file, or one part's signature, in the order in which they are put together.

    Attributes:
        package: where its values go, empty for the top.
        values: as they stand in it.
        choices: parts and presets that it chooses.
        path: of the file, None for a signature or the schema.
    """

    package: str
    values: Mapping[str, Any]
    choices: Mapping[str, object]
    path: Path | None

    def setting(self, option: str) -> Setting | None:
        """Return the value that this layer sets, None if it does not set the option."""
        start = f"{self.package}." if self.package else ""
        if not option.startswith(start):
            return None
        value: Any = self.values
        keys = option[len(start) :].split(".")
        for key in keys:
            if not isinstance(value, Mapping) or key not in value:
                return None
            value = value[key]
        return Setting(value, self.source(option, keys))

    def source(self, option: str, keys: Sequence[str]) -> str:
        if self.path is not None:
            return f"{shown(self.path)}:{line_of(self.path, keys)}"
        return f"{signature_of(option, self.values)} (default)"


def explain_options(names: Sequence[str], words: Sequence[str], folders: Sequence[str] = ()) -> str:
    """Say of each option, or of a group's every option, what it is and what set it.

    Args:
        names: such as ``guidance.scale`` or ``guidance``.
        words: of the command line, quoted as for ``compose_config``.
        folders: with configuration files of the user's own.

    Raises:
        ValueError: there is no such option, or the configuration cannot be composed.
    """
    common, own = split_stages(words)
    if not (own or named_stages(common, folders)):
        return _explained(names, words, folders)
    made, paragraphs = compose_any(words, folders)[1], list[str]()
    for name in names:  # which one stage's part may have and another's not
        if not any(_knows(stage.config, name) for stage in made):
            options_under(name, made[0].config)
    for stage in made:
        if there := [name for name in names if _knows(stage.config, name)]:
            paragraphs.append(f"stage {stage.name}:\n{_explained(there, stage.words, folders, stage.config)}")
    return "\n".join(paragraphs)


def _knows(config: DictConfig, name: str) -> bool:
    try:
        return options_under(name, config) is not None
    except ValueError:
        return False


def _explained(
    names: Sequence[str], words: Sequence[str], folders: Sequence[str], known: DictConfig | None = None
) -> str:
    """The paragraphs of ``explain_options`` for one stage's words, whose configuration may have more from the stage before."""
    with composing(folders) as search:
        chosen = compose_words([*with_implied(words), *search])
        trace = Trace.of(chosen.words, words)
    paragraphs: list[str] = []
    for name in names:
        if name in (*PARTS, *CHOICES):
            paragraphs.append(trace.choice(name))
        for option in options_under(name, chosen.config):
            own = chosen.config if known is None else known
            paragraphs.append(
                trace.option(option, own, follows=known is not None and _differ(own, chosen.config, option))
            )
    return "\n".join(paragraphs) + "\n"


def _differ(one: DictConfig, other: DictConfig, option: str) -> bool:
    return bool(OmegaConf.select(one, option) != OmegaConf.select(other, option))


def options_under(name: str, config: DictConfig) -> list[str]:
    """The option of this name, or all of a group's.

    Raises:
        ValueError: there is none.
    """
    parts = [f"{part}.{key}" for part in PARTS for key in config[part] or () if not str(key).startswith("_")]
    options = [option for option in (*known_options(), *parts) if option not in group_names()]
    # What is inside a schedule or a list belongs to its option.
    found = [option for option in options if name == option or name.startswith((f"{option}.", f"{option}["))]
    found += [option for option in options if option.startswith(f"{name}.")]
    if not found and name not in (*PARTS, *CHOICES):
        close = difflib.get_close_matches(name, [*options, *group_names(), *CHOICES], n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"--why: unknown option {name!r}; {hint}'distill --options' lists all options")
    return found


@dataclass(frozen=True)
class Trace:
    """The layers of a configuration, in order.

    Attributes:
        layers: files and signatures; a later one wins over an earlier one.
        overrides: words of the command line and those that follow from them; they win over every layer.
        reasons: of the words that the user did not write.
        chosen_in: path of the file that chose a group's part against the library's own list.
    """

    layers: Sequence[Layer]
    overrides: Sequence[Override]
    reasons: Mapping[str, str]
    chosen_in: Mapping[str, str]

    @classmethod
    def of(cls, composed: Sequence[str], given: Sequence[str]) -> Trace:
        """Read Hydra's own list of what it composes."""
        loader, written = GlobalHydra.instance().config_loader(), with_implied(given)
        assert isinstance(loader, ConfigLoaderImpl)
        clearing = {word for each in given for word in cleared(each)} - set(given)
        words = OverridesParser.create().parse_overrides(list(composed))
        files = CachingConfigRepository(loader.repository)
        loader._process_config_searchpath("config", words, files)
        found = create_defaults_list(files, "config", words, prepend_hydra=True, skip_missing=False)
        items = [item for item in found.defaults if not (item.package or "").startswith("hydra")]
        layers = [read(item.config_path, item.package or "", files) for item in items if item.config_path]
        return cls(
            layers,
            [
                word
                for word in words
                if word.input_line not in clearing and not word.key_or_group.startswith("hydra")
            ],
            {**{word: "follows from an alias" for word in composed if word not in written}, **implied(given)},
            {
                group: word.containing_config_path
                for group, word in found.overrides.override_metadata.items()
                if word.containing_config_path is not None
            },
        )

    def option(self, name: str, config: DictConfig, *, follows: bool = False) -> str:
        """An option's value, what set it, such as what it ``follows`` from the stage before, and what else would have."""
        settings = [*self._words(name), *(s for layer in reversed(self.layers) if (s := layer.setting(name)))]
        value = OmegaConf.select(config, name)
        plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        settings = [*([Setting(plain, "what follows from the other stages")] if follows else []), *settings]
        lines = [_paragraph(name, plain, settings)]
        if said := meaning_of(name, config).replace("``", ""):
            lines.append(f"  means  {said}")
        if name in ("prompt", "source_prompt") and plain and (read_as := _reading(str(plain), config.prior)):
            lines.append(f"  note   {read_as}")
        return "\n".join(lines)

    def _words(self, name: str) -> list[Setting]:
        """Return the values that the command line sets, the last one first."""
        found = []
        for word in reversed(self.overrides):
            key = word.key_or_group
            value: object = None if word.is_delete() else word.value()
            line = word.input_line or ""
            inside = isinstance(value, dict) and name.startswith(f"{key}.")
            for step in name[len(key) + 1 :].split(".") if inside else ():
                value = value.get(step, _ABSENT) if isinstance(value, dict) else _ABSENT
            if (key == name or key.startswith((f"{name}.", f"{name}[")) or inside) and value is not _ABSENT:
                found.append(
                    Setting(value if key == name or inside else f"{key} = {value}", self._told(line))
                )
        return found

    def _told(self, word: str) -> str:
        return f"{word} ({self.reasons[word]})" if word in self.reasons else f"{word} (command line)"

    def choice(self, group: str) -> str:
        """The part or preset that is chosen, by what, and what else was."""
        words = [word for word in self.overrides if word.key_or_group == group]
        settings = [Setting(word.value(), self._told(word.input_line or "")) for word in words]
        chosen = self.chosen_in.get(group)
        files = [layer for layer in reversed(self.layers) if layer.path and group in layer.choices]
        files.sort(key=lambda layer: not (chosen and f"{layer.path}".endswith(f"{chosen}.yaml")))
        for layer in files:
            assert layer.path is not None
            line = line_matching(layer.path, rf"^\s*-\s*(override\s+)?/?{group}\s*:")
            settings.append(Setting(layer.choices[group], f"{shown(layer.path)}:{line}"))
        return _paragraph(group, settings[0].value if settings else None, settings)


_ABSENT = object()


def _reading(prompt: str, prior: str) -> str:
    """What a bundled prior reads a prompt as, or why it refuses it; empty where it is read as it is."""
    known = of_prior(prior)
    try:
        return told(prompt, understand(prompt, known)) if known else ""
    except ValueError as error:
        return str(error)


def _paragraph(name: str, value: object, settings: Sequence[Setting]) -> str:
    lines = [f"{name} = {_text(value)}"]
    for number, (other, source) in enumerate(settings):
        merged = number == 0 and isinstance(value, dict) and other != value
        lines.append(f"  set by {source}" if number == 0 else f"  not    {source}: {_text(other)}")
        if merged:
            lines[-1] += f": {_text(other)}, with the rest from what follows"
    return "\n".join(lines)


def _text(value: object) -> str:
    """A value as YAML writes it, on one line."""
    return (
        yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True)
        .removesuffix("\n...\n")
        .strip()
    )


def read(path: str, package: str, files: IConfigRepository) -> Layer:
    """Load one file or signature as Hydra does."""
    loaded = files.load_config(path)
    source = next((source for source in files.get_sources() if source.is_config(path)), None)
    assert loaded is not None and source is not None, path
    values: Any = OmegaConf.to_container(loaded.config) if OmegaConf.is_dict(loaded.config) else {}
    choices = {
        str(item.group).lstrip("/"): item.value
        for item in loaded.defaults_list or ()
        if isinstance(item, GroupDefault) and "$" not in str(item.value)
    }
    return Layer(package.replace("_global_", ""), values, choices, _file(source, path))


def _file(source: ConfigSource, path: str) -> Path | None:
    if source.scheme() == "pkg":
        folder = Path(inspect.getfile(importlib.import_module(source.path.replace("/", ".")))).parent
    elif source.scheme() == "file":
        folder = Path(source.path)
    else:
        return None
    return folder / (path if path.endswith(".yaml") else f"{path}.yaml")


def shown(path: Path) -> str:
    """A path, relative where it lies under the working folder."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def line_of(path: Path, keys: Sequence[str]) -> int:
    """The line of a YAML file where nested keys stand."""
    node = yaml.compose(path.read_text(encoding="utf-8"))
    line = 1
    for key in keys:
        if not isinstance(node, yaml.MappingNode):
            break
        for name, value in node.value:
            if name.value == key:
                line, node = name.start_mark.line + 1, value
                break
    return line


def line_matching(path: Path, pattern: str) -> int:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((number for number, line in enumerate(lines, 1) if re.search(pattern, line)), 1)


def signature_of(option: str, values: Mapping[str, Any]) -> str:
    """Return the source of an option's default: a part's signature, or the schema."""
    if "_target_" in values:
        target = get_object(str(values["_target_"]))
        where = target.__init__ if inspect.isclass(target) else target
    else:
        where = schema_of(option.rpartition(".")[0])
    lines, start = inspect.getsourcelines(where)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    name = option.rpartition(".")[2]
    line = next((node.lineno for node in _named(tree) if _name(node) == name), 1)
    return f"{shown(Path(inspect.getsourcefile(where) or ''))}:{start + line - 1}"


def _named(tree: ast.AST) -> Iterator[ast.arg | ast.AnnAssign]:
    yield from (node for node in ast.walk(tree) if isinstance(node, (ast.arg, ast.AnnAssign)))


def _name(node: ast.arg | ast.AnnAssign) -> str:
    return node.arg if isinstance(node, ast.arg) else getattr(node.target, "id", "")
