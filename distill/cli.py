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
  distill amortise prompts=FILE               train one generator for a library of prompts
  distill "a red mug" generator=FOLDER        make a prompt's scene with a generator, without training
  distill "a red mug" seeds=4 keep=best       four seeds; the files of the one that a judge prefers are the run's own
  distill "a red mug" -m seed=0,1,2           sweep
  distill prompts=FILE -m shard=1/2,2/2 hydra/launcher=joblib   a sweep whose jobs are processes; submitit_slurm: of a cluster
  distill summary outputs/                    one table over all runs in a folder: summary.csv, summary.html
  distill "a blue mug" init=RUN guidance=dds source_prompt="a red mug"   edit a finished run
  distill image=mug.png                       from a picture: RGBA, or on a plain background
  distill "a red mug" image=mug.png           from a picture and a prompt
  distill "a leather armchair" mesh=chair.glb   a texture for a mesh of your own
  distill -- "seed=1 is my prompt"            a prompt that looks like an option
  distill priors                              list the models that prior= knows by name
  distill priors embedded                     list the objects and colours that the embedded prior, or one in a folder, knows
  distill doctor prior=sd-2.1-base guidance=vsd   check the machine, forecast memory and time (--json)

Common options (name=value):
  iterations, seed, seeds, retries, particles, init, image, reference.elevation_deg, output_dir, prior, device, guidance,
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
                and (found[1].split("@")[0] in KEYS or found[1].startswith("hydra/"))
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
    """The table of the priors that are known by name, or what one that was trained on the embedded world knows.

    Raises:
        ValueError: there is none of that name.
    """
    from distill.embedded import vocabulary
    from distill.priors.table import describe

    if not of:
        return describe()
    if (known := vocabulary.of_prior(of[0])) is None:
        raise ValueError(
            f"distill priors takes 'embedded' or a prior's folder with {vocabulary.NAMES}, got {of[0]!r}; leave it out to list "
            "the models that prior= knows by name"
        )
    return vocabulary.describe(known)


def _job(config: object) -> int:
    """Run one configuration and return the exit code; every foreseeable failure is one line."""
    from omegaconf import DictConfig

    from distill.run.amortise import run_library
    from distill.run.batch import run_prompts, table_of
    from distill.run.execute import run
    from distill.run.failures import FORESEEN
    from distill.run.generator import amortised
    from distill.run.journal import Interrupted

    assert isinstance(config, DictConfig)
    try:
        if amortised(config):
            run_library(config)
            return 0
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
    except FORESEEN as error:
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
    if arguments[0] == "priors" and len(arguments) <= 2:
        try:
            print(_list(arguments[1:]), flush=True)
        except BrokenPipeError:  # of a reader that has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except ValueError as error:
            _fail(error)
            sys.exit(2)
        sys.exit(0)
    _quieten()
    try:
        sys.exit(_start(arguments))
    except ValueError as error:
        _fail(error)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _quieten() -> None:
    """Log this library's words as they are, and of others only what goes wrong."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # they set their own levels as they are imported
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    for noisy in ("httpx", "trimesh", "imageio_ffmpeg", "diffusers", "transformers"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    logging.getLogger("hydra.utils").setLevel(
        logging.CRITICAL
    )  # what it says before it fails is in the error


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
    if arguments[0] == "summary":
        return _summary(arguments[1:])
    library = arguments[0] == "amortise"
    prompt, options = split_prompt(arguments[1:] if library else arguments)
    if library:
        options = of_library(prompt, options)
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


def of_library(prompt: str | None, options: list[str]) -> list[str]:
    """The options of ``distill amortise``: with the scene that learns a library, where none is chosen.

    Raises:
        ValueError: there is a prompt, no file of prompts, or a scene of one prompt.
    """
    from distill.run.compose import plugins

    keys = {text.lstrip("+").partition("=")[0]: text.partition("=")[2] for text in options}
    if prompt is not None:
        raise ValueError(f"distill amortise takes a library, prompts=FILE, and no prompt, got {prompt!r}")
    if not keys.get("prompts"):
        raise ValueError("distill amortise needs a library of prompts: add prompts=FILE")
    scenes = [
        name for name, scene in plugins()["scene"].items() if "library" in getattr(scene, "features", ())
    ]
    if "scene" in keys and keys["scene"] not in scenes:
        raise ValueError(
            f"distill amortise needs scene={' or scene='.join(scenes)}, got scene={keys['scene']}"
        )
    return options if {"scene", "experiment"} & {*keys} else [*options, "scene=hyper_grid"]


def _summary(arguments: Sequence[str]) -> int:
    """Print one table over all runs in a folder."""
    from distill.run.summary import as_text, summarise

    if len(arguments) > 1:
        raise ValueError(f"summary takes one folder, such as outputs/, got {' '.join(arguments)}")
    runs, page = summarise(user_path(arguments[0] if arguments else "outputs"))
    print(f"{as_text(runs)}\nopen {page}")
    return 0


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
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from distill.run import compose as settings

    codes: list[int] = []
    flags = [text for text in options if "=" not in text or text.startswith("-")]
    words = [text for text in options if text not in flags]
    launcher = _launcher(words, flags)
    added = settings.implied(words)

    @hydra.main(version_base="1.3", config_path="pkg://distill.conf", config_name="config")
    def job(config: object) -> None:
        given = [word for word in HydraConfig.get().overrides.task if word not in added]
        aliases = [word for word in words if word.startswith("guidance=") and "," not in word]
        if launcher:
            _quieten()  # another process, which has not been told
        try:
            code = _job(settings.compose_config([*given, *aliases], folders))
        except ValueError as error:
            _fail(error)
            code = 2
        if launcher and code:  # what another process appends stays there
            raise JobEnded(code, given)
        codes.append(code)

    settings.register()
    sys.argv = ["distill", *flags, *settings.with_preset(words)]
    os.environ.setdefault(
        "HYDRA_FULL_ERROR", "1"
    )  # which raises what is wrong rather than to print several lines
    with settings.one_line():
        try:
            job()
        except JobEnded as ended:
            _say(str(ended))
            return ended.code
        except Exception as error:
            if not launcher or isinstance(error, (ValueError, HydraException, OmegaConfBaseException)):
                raise
            # A worker was killed, or the cluster took it away.
            lost = " ".join(str(error).split())[:300]
            _say(
                f"a job of the sweep was lost: {lost}; the same command goes on where it was, with resume=true for single prompts"
            )
            return 1
    return max(codes, default=0)


class JobEnded(Exception):
    """A job of a sweep in another process did not succeed."""

    def __init__(self, code: int, words: Sequence[str]) -> None:
        super().__init__(code, words)
        self.code, self.words = code, words

    def __str__(self) -> str:
        return (
            f"a job of the sweep ended with exit code {self.code}: {' '.join(self.words)}; the other jobs have ended, too; "
            "distill summary lists what became of all runs"
        )


#: Hydra's launchers other than its own, and the packages that they are in.
LAUNCHERS = {
    "joblib": "hydra-joblib-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
}


def _launcher(words: Sequence[str], flags: Sequence[str]) -> str | None:
    """The launcher that gives a sweep's jobs to other processes, or None.

    Raises:
        ValueError: its package is not installed, or there is no sweep.
    """
    from importlib.util import find_spec

    name = next((word.partition("=")[2] for word in words if word.startswith("hydra/launcher=")), "basic")
    if name == "basic":
        return None
    package = f"hydra_plugins.{LAUNCHERS.get(name, '').replace('-', '_')}"
    if name in LAUNCHERS and not (find_spec("hydra_plugins") and find_spec(package)):
        raise ValueError(
            f"hydra/launcher={name} needs the package {LAUNCHERS[name]}; install it with pip install 'distill3d[queues]'"
        )
    if not {"-m", "--multirun"} & set(flags):
        raise ValueError(
            f"hydra/launcher={name} distributes the jobs of a sweep; add -m and several values of an option"
        )
    return name
