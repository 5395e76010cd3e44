"""Split the command line into the prompt and the options."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence

from distill.files.paths import user_path

#: Endings of pictures, which are no prompts.
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".heic")
_OPTION = re.compile(r"[+~]{0,2}([A-Za-z_][\w/@:]*)(\.[\w.]+)?(=|$)")
#: Options that say what to make, beside which a word such as iteratons=5 is a slip and no prompt.
_WHAT = ("prompt", "prompts", "image", "mesh", "mesh.file")
_SLIP = re.compile(r"[A-Za-z_][\w.]*=")
_VALUE_FLAGS = (
    "--why",
    "--config-dir",
    "-cd",
    "--config-name",
    "-cn",
    "--config-path",
    "-cp",
    "--package",
    "-p",
    "--info",
    "-i",
    "--cfg",
    "-c",
)


def split_prompt(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Separate the prompt from the options.

    The prompt is the one argument that is neither a flag nor ``name=value`` with a name this program knows; beside a prompt, a
    picture, a mesh or a file of prompts, ``name=value`` is an option whatever the name. After ``--`` it is whatever comes next.

    Raises:
        ValueError: there are two prompts.
    """
    from distill.run.config.overrides import KEYS

    prompts: list[str] = []
    options: list[str] = []
    literal: list[str] = []
    waiting = iter(arguments)
    for text in waiting:
        if text == "--":
            literal += waiting
        elif text in _VALUE_FLAGS:
            options += [text, *([value] if (value := next(waiting, None)) is not None else [])]
        elif (
            (text.startswith("-") and not re.search(r"\s", text))
            or (
                (found := _OPTION.match(text))
                and (found[1].split("@")[0] in KEYS or found[1].startswith("hydra/"))
                and (found[3] or text[0] == "~")
            )
            or (text.startswith("+") and found)
        ):
            options.append(text)
        else:
            prompts.append(text)
    slips = [text for text in prompts if _SLIP.match(text)]
    others = [text for text in prompts if text not in slips] + literal
    named = any(text.lstrip("+").partition("=")[0] in _WHAT for text in options)
    if slips and (len(others) == 1 or (named and not others)):
        # An argument such as iteratons=5 is more likely a slip in an option than a prompt.
        prompts, options = others, options + slips
    else:
        prompts += literal
    if len(prompts) > 1:
        check_flags([text for text in options if text.startswith("-")])
        slip = any(re.match(r"=|[\w.,:/@+~-]+\s*[=:]", text) or text in KEYS for text in prompts)
        slip = slip or any(text.endswith("=") for text in options)
        # A word such as scene or image may as well be of the prompt.
        remedy = "; an option is written name=value, without spaces around =" if slip else ""
        raise ValueError(
            f"expected one prompt, got {len(prompts)} ({', '.join(map(repr, prompts[:3]))}); put the prompt in quotes{remedy}"
        )
    if prompts and (twice := [text for text in options if text.lstrip("+").startswith("prompt=")]):
        raise ValueError(f"expected one prompt, got {prompts[0]!r} and {twice[0]}; leave one of them out")
    for text in prompts:
        if text.lower().endswith(PICTURES) and user_path(text).is_file():
            raise ValueError(f"{text} is a picture; to start from it, write image={text}")
    return (prompts[0] if prompts else None), options


#: Flags of Hydra, and those of this program that are not read before them.
_FLAGS = {
    *_VALUE_FLAGS, "--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m", "--shell-completion", "-sc",
    "--experimental-rerun", "--options",
}  # fmt: skip


def check_flags(options: Sequence[str], known: Collection[str] = frozenset(_FLAGS)) -> None:
    """Refuse unknown flags.

    Raises:
        ValueError: there is one.
    """
    for text in options:
        if text.startswith("-") and (flag := text.partition("=")[0]) not in known:
            from distill.run.config.overrides import KEYS

            option = text.lstrip("-").replace("-", "_")
            close = difflib.get_close_matches(flag, known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            if option.partition("=")[0].partition(".")[0] in KEYS:
                hint = f"options have no dashes, write {option if '=' in option else f'{option}=VALUE'}; "
            raise ValueError(
                f"unknown flag {flag}; {hint}'distill --help' lists the flags, and 'distill --options' all options"
            )


def check_single(words: Sequence[str]) -> None:
    """Refuse several names for an option that takes one, outside a sweep.

    Raises:
        ValueError: an option has some.
    """
    from distill.run.config.overrides import NAMED

    for word in words:
        key, _, value = word.lstrip("+").partition("=")
        text = value.strip("'\"")
        if key in NAMED and re.fullmatch(r"[^\s,]+(,[^\s,]+)+", text) and not user_path(text).exists():
            from distill.run.config.mistakes import several

            raise ValueError(several(key, text))


def of_library(prompt: str | None, options: Sequence[str], folders: Sequence[str] = ()) -> list[str]:
    """Check the options of ``distill amortise``; returns those that follow: the scene that learns a library, where none is
    chosen, and the library in the folder of a run that is resumed, where none is given.

    Args:
        prompt: that stands beside them.
        options: without flags that have values.
        folders: with configuration files of the user's own.

    Raises:
        ValueError: there is a prompt, no file of prompts, or a scene of one prompt.
    """
    if prompt is not None:
        raise ValueError(f"distill amortise takes a library, prompts=FILE, and no prompt, got {prompt!r}")
    written = _written(options)
    if written.get("prompts"):
        return library_scene(options, folders)
    from distill.run.config.overrides import quote
    from distill.run.several.generator import LIBRARY

    resumed = written.get("resume", "").lower() == "true" and "output_dir" in written
    kept = user_path(written.get("output_dir", "")) / LIBRARY
    if not (resumed and kept.is_file()):
        raise ValueError("distill amortise needs a library of prompts: add prompts=FILE")
    return [f"prompts={quote(str(kept))}", *library_scene(options, folders)]


def library_scene(options: Sequence[str], folders: Sequence[str] = ()) -> list[str]:
    """Return the option that selects the scene of a library, if neither the options nor the experiment select a suitable one.

    Several values, of a sweep, must all lead to the same word.

    Raises:
        ValueError: a scene of one prompt is chosen, or some of several experiments have a library's scene.
    """
    from distill.run.config.compose import compose_words, composing
    from distill.run.config.plugins import plugins
    from distill.run.several.generator import amortised

    written = _written(options)
    if "scene" in written:
        scenes = [
            name for name, scene in plugins()["scene"].items() if "library" in getattr(scene, "features", ())
        ]
        if not set(written["scene"].split(",")) <= {*scenes}:
            raise ValueError(
                f"distill amortise needs scene={' or scene='.join(scenes)}, got scene={written['scene']}"
            )
        return []
    default = "scene=hyper_grid"
    if not (experiments := written.get("experiment", "")):
        return [default]
    with composing(folders) as search:
        learns = {
            name: amortised(compose_words([f"experiment={name}", *search]).config)
            for name in experiments.split(",")
        }
    if len({*learns.values()}) > 1:
        without = next(name for name, itself in learns.items() if not itself)
        raise ValueError(
            f"of experiment={experiments}, {without} has no scene of a library and others have one; add scene=, such as {default}"
        )
    return [] if all(learns.values()) else [default]


def _written(options: Sequence[str]) -> dict[str, str]:
    """What stands on a line as ``name=value``, flags left out."""
    words = [text for text in options if "=" in text and not text.startswith("-")]
    return {text.lstrip("+").partition("=")[0]: text.partition("=")[2].strip("'\"") for text in words}


def values_of(flag: str, options: Sequence[str], short: str | None = None) -> tuple[list[str], list[str]]:
    """Return the values of a flag, written ``--flag value`` or ``--flag=value``, and the remaining arguments.

    Raises:
        ValueError: the last one has no value.
    """
    values: list[str] = []
    rest: list[str] = []
    waiting = iter(options)
    for text in waiting:
        if text in (flag, short):
            value = next(waiting, None)
            if value is None:
                raise ValueError(f"{flag} needs a value after it")
            values.append(value)
        elif text.startswith(f"{flag}="):
            values.append(text.partition("=")[2])
        else:
            rest.append(text)
    return values, rest


def with_example(overrides: list[str]) -> list[str]:
    """Return the command line with an example prompt added, if it has neither a prompt nor a picture."""
    given = any(text.startswith(("prompt=", "prompts=", "image=")) for text in overrides)
    return overrides if given else [*overrides, "prompt=a red mug"]
