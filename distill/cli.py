"""The command line: a plain prompt, and Hydra for the rest."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Sequence

from distill.files.paths import user_path

HELP = """\
Make a 3D asset from a text prompt or a picture.

  distill "a red mug"                         one asset, in outputs/<prompt>-<hash>/
  distill "a red mug" iterations=600 seed=1   set options
  distill "a red mug" resume=true             resume an interrupted run
  distill "a red mug" view=true               print the address of a page to watch, pause and stop the run
  distill prompts=FILE                        one asset for each line of a file
  distill prompts=FILE shard=1/4              the first of four parts of a file, each for a process of its own
  distill "a red mug" -m seed=0,1,2           sweep
  distill "a blue mug" init=RUN guidance=dds source_prompt="a red mug"   edit a finished run
  distill image=mug.png                       from a picture: RGBA, or on a plain background
  distill "a red mug" image=mug.png           from a picture and a prompt
  distill "a leather armchair" mesh=chair.glb   a texture for a mesh of your own
  distill -- "seed=1 is my prompt"            a prompt that looks like an option
  distill priors                              list the models that prior= knows by name
  distill priors embedded                     list the objects and colours that the embedded prior knows
  distill doctor prior=sd-2.1-base guidance=vsd   check the machine, forecast memory and time (--json)

Common options (name=value):
  iterations, seed, particles, init, image, reference.elevation_deg, output_dir, prior, device, guidance,
  guidance.scale, timesteps, timesteps.t_max, render.size, render.batch, scene.encoding_lr, export.resolution,
  preset, experiment

  guidance=tp_sds     sds with timesteps=dreamtime; cannot be combined with other timesteps
  --options           print every option and its value for this command
  --why OPTION        print the value of an option or group, the file or argument that set it, and the values it
                      overrides; can be repeated
  --config-dir DIR    a folder with your own configuration files
  +experiment=NAME    use DIR/experiment/NAME.yaml
  --version, --help

Exit codes: 0 success, 1 a run failed, 2 invalid input, 130 interrupted (continue with resume=true).
"""

#: Endings of pictures, which are no prompts.
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".heic")
_OPTION = re.compile(r"[+~]{0,2}([A-Za-z_][\w/@:]*)(\.[\w.]+)?(=|$)")
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
    """Tell the prompt from the options.

    The prompt is the one argument that is neither a flag nor ``name=value`` with a name this program knows;
    after ``--`` it is whatever comes next.

    Raises:
        ValueError: there are two prompts.
    """
    from distill.run.compose import KEYS

    prompts: list[str] = []
    options: list[str] = []
    waiting = iter(arguments)
    for text in waiting:
        if text == "--":
            prompts += waiting
        elif text in _VALUE_FLAGS:
            options += [text, *([value] if (value := next(waiting, None)) is not None else [])]
        elif (
            (text.startswith("-") and not re.search(r"\s", text))
            or (
                (found := _OPTION.match(text))
                and (found[1].split("@")[0] in KEYS)
                and (found[3] or text[0] == "~")
            )
            or (text.startswith("+") and found)
        ):
            options.append(text)
        else:
            prompts.append(text)
    if len(prompts) > 1:
        # An argument such as iteratons=5 is more likely a slip in an option than a second prompt.
        slips = [text for text in prompts if re.match(r"[A-Za-z_][\w.]*=", text)]
        if slips and len(prompts) - len(slips) == 1:
            return next(text for text in prompts if text not in slips), options + slips
        raise ValueError(
            f"expected one prompt, got {len(prompts)} ({', '.join(map(repr, prompts[:3]))}); put the prompt in quotes"
        )
    for text in prompts:
        if text.lower().endswith(PICTURES) and user_path(text).is_file():
            raise ValueError(f"{text} is a picture; to start from it, write image={text}")
    return (prompts[0] if prompts else None), options


def _say(message: str) -> None:
    print(f"distill: error: {message}", file=sys.stderr)


def _fail(error: BaseException) -> None:
    if os.environ.get("DISTILL_TRACEBACK"):
        logging.getLogger(__name__).error("traceback", exc_info=error)
    _say(" ".join(str(error).split()) or type(error).__name__)


def _list(of: Sequence[str]) -> str:
    """The table of the priors that are known by name, or what the embedded one knows."""
    from distill.embedded import vocabulary
    from distill.priors.table import describe

    return vocabulary.describe(vocabulary.known(vocabulary.SHIPPED)) if of else describe()


def _job(config: object) -> int:
    """Run one configuration and return the exit code; every foreseeable failure is one line."""
    from omegaconf import DictConfig

    from distill.loop import Diverged, OutOfMemory
    from distill.run.batch import run_prompts, table_of
    from distill.run.execute import ExportFailed, run
    from distill.run.journal import Interrupted

    assert isinstance(config, DictConfig)
    try:
        if config.prompts is None:
            run(config)
            return 0
        results = run_prompts(config)
    except Interrupted as stopped:
        print(f"distill: {stopped}", file=sys.stderr)
        return 130
    except ValueError as error:
        _fail(error)
        return 2
    except (Diverged, OutOfMemory, ExportFailed, OSError) as error:
        _fail(error)
        return 1
    failed = {prompt: why for prompt, why in results.items() if why not in ("finished", "skipped")}
    counts = [list(results.values()).count(word) for word in ("finished", "skipped")]
    print(f"{counts[0]} finished, {counts[1]} skipped, {len(failed)} failed")
    for prompt, why in failed.items():
        print(f"  failed: {prompt}: {why}")
    print(f"open {table_of(config)}")
    return 1 if failed else 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``distill`` and ``python -m distill``."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    flags = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if not arguments or "-h" in flags or "--help" in flags:
        print(HELP, end="")
        sys.exit(0 if arguments else 2)
    if "--version" in flags:
        from distill import __version__

        print(__version__)
        sys.exit(0)
    if arguments in (["priors"], ["priors", "embedded"]):
        try:
            print(_list(arguments[1:]), flush=True)
        except BrokenPipeError:  # of a reader that has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except ValueError as error:
            _fail(error)
            sys.exit(2)
        sys.exit(0)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # they set their own levels as they are imported
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    for noisy in ("httpx", "trimesh", "imageio_ffmpeg", "diffusers", "transformers"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    logging.getLogger("hydra.utils").setLevel(
        logging.CRITICAL
    )  # what it says before it fails is in the error
    try:
        sys.exit(_start(arguments))
    except ValueError as error:
        _fail(error)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _start(arguments: Sequence[str]) -> int:
    from distill.run import compose as settings

    if arguments[0] == "doctor":
        from distill.doctor import doctor

        prompt, options = split_prompt([text for text in arguments[1:] if text != "--json"])
        folders, options = _values_of("--config-dir", options, "-cd")
        if prompt is not None:
            options.append(f"prompt={settings.quote(prompt)}")
        overrides = _with_example([settings.quote_text(text) for text in options], "a red mug")
        return doctor(settings.compose_config(overrides, folders), as_json="--json" in arguments)
    prompt, options = split_prompt(arguments)
    traced, options = _values_of("--why", options)
    if prompt is not None:
        options.append(f"prompt={settings.quote(prompt)}")
    folders, rest = _values_of("--config-dir", options, "-cd")
    flags = [text for text in rest if text.startswith("-")]
    overrides = [settings.quote_text(text) for text in rest if text not in flags]
    if traced:
        from distill.run.why import explain_options

        print(explain_options(traced, _with_example(overrides), folders), end="")
        return 0
    if "--options" in flags:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(settings.compose_config(_with_example(overrides), folders)), end="")
        return 0
    if not flags and not any(text.startswith("hydra") for text in overrides):
        return _job(settings.compose_config(overrides, folders))
    return _through_hydra(options, folders)


def _values_of(flag: str, options: Sequence[str], short: str = "") -> tuple[list[str], list[str]]:
    """The values of a flag, written ``--flag value`` or ``--flag=value``, and what else is on the line.

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


def _with_example(overrides: list[str], prompt: str = "example") -> list[str]:
    """A command line with a prompt, where it has neither one nor a picture."""
    given = any(text.startswith(("prompt=", "prompts=", "image=")) for text in overrides)
    return overrides if given else [*overrides, f"prompt={prompt}"]


def _through_hydra(options: list[str], folders: Sequence[str]) -> int:
    """Sweeps and Hydra's own flags; each job is composed anew from its words, as it would be alone."""
    import hydra
    from hydra.core.hydra_config import HydraConfig

    from distill.run import compose as settings

    codes: list[int] = []
    flags = [text for text in options if "=" not in text or text.startswith("-")]
    words = [text for text in options if text not in flags]
    added = settings.implied(words)

    @hydra.main(version_base="1.3", config_path="pkg://distill.conf", config_name="config")
    def job(config: object) -> None:
        given = [word for word in HydraConfig.get().overrides.task if word not in added]
        aliases = [word for word in words if word.startswith("guidance=") and "," not in word]
        try:
            codes.append(_job(settings.compose_config([*given, *aliases], folders)))
        except ValueError as error:
            _fail(error)
            codes.append(2)

    settings.register()
    sys.argv = ["distill", *flags, *settings.with_preset(words)]
    os.environ.setdefault(
        "HYDRA_FULL_ERROR", "1"
    )  # which raises what is wrong rather than to print several lines
    with settings.one_line():
        job()
    return max(codes, default=0)
