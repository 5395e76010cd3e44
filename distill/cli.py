"""The command line: a plain prompt, and Hydra for the options."""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from distill.arguments import check_flags, check_single, of_library, split_prompt, values_of, with_example
from distill.files.errors import line_of
from distill.files.paths import user_path
from distill.usage import USAGES, usage_of

if TYPE_CHECKING:
    from distill.run.several.queue import Part

HELP = """\
Make a 3D asset from a text prompt or a picture.

  distill "a red mug"                         one asset, in outputs/<prompt>-<hash>/
  distill "a red mug" iterations=600 seed=1   set options
  distill "a red mug" resume=true             resume an interrupted run
  distill "a red mug" view=true               print the address of a page to watch, pause and stop the run
  distill prompts=FILE                        one asset for each line of a file
  distill prompts=FILE shard=1/4              the first of four parts of a file, for separate processes
  distill "a red mug" stages=[field,surface]  a field, then a surface of it; stage.surface.iterations=200 applies to one stage
  distill amortise prompts=FILE               train one generator for a library of prompts
  distill "a red mug" generator=FOLDER        make a prompt's scene with a generator, without training
  distill "a red mug" seeds=4 keep=best       four seeds; a judge selects the one to keep
  distill "a red mug" -m seed=0,1,2           sweep
  distill prompts=FILE -m shard=1/2,2/2 hydra/launcher=joblib   a sweep with a process per job; submitit_slurm: on a cluster
  distill export RUN export.formats=usdz      the mesh of a finished run again: formats, name, pivot, size_m, lods
  distill summary outputs/                    one table over all runs in a folder: summary.csv, summary.html
  distill "a blue mug" init=RUN guidance=dds source_prompt="a red mug"   edit a finished run
  distill image=mug.png                       from a picture: RGBA, or on a plain background
  distill "a red mug" image=mug.png           from a picture and a prompt
  distill "a leather armchair" mesh=chair.glb   a texture for your own mesh
  distill -- "seed=1 is my prompt"            a prompt that looks like an option
  distill priors                              list the models that prior= accepts by name
  distill priors things                       list the objects and colours that a bundled prior, or one in a folder, knows
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
  --version, --help   COMMAND --help: of amortise, doctor, export, priors or summary

Exit codes: 0 success, 1 a run failed, 2 invalid input, 130 interrupted (continue with resume=true).
"""


def _say(message: str) -> None:
    print(f"distill: error: {message}", file=sys.stderr)


def _too_long(error: BaseException) -> bool:
    """Tell whether an option names a file that no file system could hold."""
    return isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG


def _fail(error: BaseException) -> None:
    if os.environ.get("DISTILL_TRACEBACK"):
        logging.getLogger(__name__).error("traceback", exc_info=error)
    said = line_of(error)
    if isinstance(error, OSError) and _too_long(error):
        said = f"the name of a file is too long: {str(error.filename)[:60]}...; give a shorter one"
    _say(said)


def _say_interrupted(runs: bool = True) -> None:
    from distill.ranks import speaks

    advice = "; to continue, add resume=true, or for a file of prompts run the same command again"
    if speaks():
        print(f"distill: interrupted{advice if runs else ''}", file=sys.stderr)


def _list(of: Sequence[str]) -> str:
    """Return the table of the known priors, or the objects that one trained on the embedded world knows.

    Raises:
        ValueError: there is none of that name.
    """
    from distill.embedded import vocabulary
    from distill.priors.table import describe

    if not of:
        return (
            f"{vocabulary.shipped()}\n\nto be downloaded, or with prior=FOLDER from a folder:\n\n{describe()}"
        )
    if (known := vocabulary.of_prior(of[0])) is None:
        raise ValueError(
            f"distill priors takes 'embedded', 'things', 'views' or a prior's folder with {vocabulary.NAMES}, got {of[0]!r}; leave it out to "
            "list the models that prior= knows by name"
        )
    return vocabulary.describe(known)


def _job(words: Sequence[str], folders: Sequence[str], library: bool = False) -> int:
    """Run what words of the command line ask for, perhaps as a library, and return the exit code; every foreseeable failure is one line.

    Raises:
        ValueError: they cannot be composed, in one line.
    """
    from distill.ranks import Ended, Lost, joined
    from distill.run.config.compose import compose_config
    from distill.run.folder.failures import FORESEEN
    from distill.run.folder.table import BUSY, SHOWN
    from distill.run.folder.table import read as read_table
    from distill.run.journal import Interrupted
    from distill.run.launched import check_shared, run_on
    from distill.run.several.batch import run_prompts
    from distill.run.several.generator import amortised
    from distill.run.several.queue import divide, table_of

    config = compose_config(words, folders)
    try:
        with joined(config.device) as ranks:
            if library or amortised(config) or config.prompts is None:
                run_on(ranks, config, library)
                return 0
            check_shared(config, ranks.size)
        results = run_prompts(divide(config, words, folders))
    except Ended:
        time.sleep(1)  # a launcher ends all as soon as one does, and the one that failed is to speak first
        return 1
    except Interrupted as stopped:
        print(f"distill: {stopped}", file=sys.stderr)
        return 130
    except ValueError as error:
        _fail(error)
        return 2
    except (*FORESEEN, Lost) as error:
        _fail(error)
        return 2 if _too_long(error) else 1
    failed = {prompt: why for prompt, why in results.items() if why not in ("finished", "skipped", BUSY)}
    counts = [list(results.values()).count(word) for word in ("finished", "skipped", BUSY)]
    elsewhere = f", {counts[2]} {BUSY} (the same command makes what is left of them)" if counts[2] else ""
    print(f"{counts[0]} finished, {counts[1]} skipped, {len(failed)} failed{elsewhere}")
    for prompt, why in list(failed.items())[:SHOWN]:
        print(f"  failed: {prompt}: {why}")
    if len(failed) > SHOWN:
        print(f"  ... and {len(failed) - SHOWN} more that failed")
    if read_table(table_of(config)) is not None:  # else it has been said why it is not there
        print(f"open {table_of(config)}")
    return 1 if failed else 0


def _swept(words: Sequence[str], folders: Sequence[str], library: bool = False, skips: bool = False) -> int:
    """Run one job of a sweep, composed from its words as it would be alone, and return the exit code; ``skips`` a finished run."""
    _quieten()  # the job may be in another process, which has not been told
    from distill.run.several.sweep import finished
    from distill.run.signals import as_interrupts

    try:
        with as_interrupts():
            if skips and (folder := finished(words, folders)):
                logging.getLogger(__name__).info("finished before, in %s", folder)
                return 0
            return _job(words, folders, library)
    except ValueError as error:
        _fail(error)
        return 2
    except KeyboardInterrupt:
        _say_interrupted()
        return 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``distill`` and ``python -m distill``."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    flags = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if not arguments or "-h" in flags or "--help" in flags:
        print(usage_of(arguments[0]) if arguments and arguments[0] in USAGES else HELP, end="")
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
    _share_cores()
    from distill.run.signals import as_interrupts

    try:
        with as_interrupts():
            sys.exit(_start(arguments))
    except ValueError as error:
        from distill.ranks import speaks

        if speaks():
            _fail(error)
        sys.exit(2)
    except OSError as error:
        if not _too_long(error):
            raise
        _fail(error)
        sys.exit(2)
    except KeyboardInterrupt:
        _say_interrupted(runs=arguments[0] not in USAGES or arguments[0] == "amortise")
        sys.exit(130)


class _BesideBars(logging.StreamHandler):
    """Writes each record on a line of its own, above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        with tqdm.external_write_mode(self.stream):
            super().emit(record)


def _quieten() -> None:
    """Log this library's words as they are, and of others only what goes wrong."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_BesideBars()])
    logging.captureWarnings(True)
    # Two set their own levels as they are imported, and Hydra is to raise what is wrong rather than print several lines.
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("DIFFUSERS_VERBOSITY", "error"),
        ("HYDRA_FULL_ERROR", "1"),
    ):
        os.environ[name] = os.environ.get(name) or value
    for noisy in ("httpx", "trimesh", "imageio_ffmpeg", "diffusers", "transformers"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    logging.getLogger("hydra.utils").setLevel(
        logging.CRITICAL
    )  # what it says before it fails is in the error


def _share_cores() -> None:
    """Let torch's threads wait for each other for some microseconds before they sleep, instead of milliseconds.

    While one waits awake, its core is not free for the one that it waits for, which another busy program keeps from its own. OpenMP reads
    this when torch is imported; what the environment says of it stays. Alone on two cores, steps take a tenth longer.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _parts(words: Sequence[str], folders: Sequence[str]) -> list[Part]:
    """The parts of a file of prompts, which have settings of their own; of any other command the one that it is."""
    from distill.run.config.compose import compose_config
    from distill.run.several.generator import amortised
    from distill.run.several.queue import Part, divide

    config = compose_config(words, folders)
    alone = [Part(config, [])]
    if config.prompts is None or amortised(config):
        return alone
    try:
        return divide(config, words, folders).parts or alone
    except ValueError:  # the file cannot be read, which a run and the doctor tell
        return alone


def _heading(part: Part, parts: Sequence[Part]) -> str:
    return f"# {part}:\n" if len(parts) > 1 else ""


def _start(arguments: Sequence[str]) -> int:
    from distill.run.config.overrides import quote, quote_text
    from distill.run.several.queue import as_alone

    if arguments[0] == "doctor":
        from distill.doctor import doctor

        prompt, options = split_prompt([text for text in arguments[1:] if text != "--json"])
        folders, options = values_of("--config-dir", options, "-cd")
        check_flags(options, ["--json"])
        if prompt is not None:
            options.append(f"prompt={quote(prompt)}")
        overrides = with_example([quote_text(text) for text in options])
        return doctor(_parts(overrides, folders), as_json="--json" in arguments)
    if arguments[0] == "summary":
        return _summary(arguments[1:])
    if arguments[0] == "export":
        return _export(arguments[1:])
    library = arguments[0] == "amortise"
    prompt, options = split_prompt(arguments[1:] if library else arguments)
    traced, options = values_of("--why", options)
    folders, rest = values_of("--config-dir", options, "-cd")
    added = of_library(prompt, rest, folders) if library else []
    if prompt is not None:
        added.append(f"prompt={quote(prompt)}")
    options, rest = [*options, *added], [*rest, *added]
    flags = [text for text in rest if text.startswith("-")]
    check_flags(flags)
    overrides = [quote_text(text) for text in rest if text not in flags]
    if not (many := {"-m", "--multirun"} & {*flags}):
        check_single(overrides)
    if traced:
        from distill.run.config.why import explain_options

        words = with_example(overrides)
        parts = _parts(words, folders)
        for part in parts:
            alone = words if len(parts) < 2 else as_alone(words, part.prompts[0])
            print(_heading(part, parts) + explain_options(traced, alone, folders), end="")
        return 0
    if "--options" in flags:
        from omegaconf import OmegaConf

        parts = _parts(with_example(overrides), folders)
        for part in parts:
            print(_heading(part, parts) + OmegaConf.to_yaml(part.config), end="")
        return 0
    if not flags and not any(text.startswith("hydra") for text in overrides):
        return _job(overrides, folders, library)
    from distill.ranks import launched
    from distill.run.several.sweep import sweep

    if launched() > 1:
        raise ValueError(
            f"a sweep (-m) starts runs of its own, which {launched()} processes of a launcher cannot share; start it without the "
            "launcher, for example with hydra/launcher=joblib"
        )
    return sweep(options, folders, partial(_swept, library=library, skips=bool(many) and not library))


def _export(arguments: Sequence[str]) -> int:
    """Export a finished run again, and print the files."""
    if not arguments:
        raise ValueError(
            "distill export takes a run's folder: distill export outputs/RUN export.formats=usdz"
        )
    from distill.run.folder.failures import FORESEEN
    from distill.run.folder.reexport import export_again

    try:
        for path in export_again(arguments[0], arguments[1:]):
            print(path)
    except FORESEEN as error:
        _fail(error)
        return 1
    return 0


def _summary(arguments: Sequence[str]) -> int:
    """Print one table over all runs in a folder."""
    from distill.run.folder.summary import as_text, summarise

    if len(arguments) > 1:
        raise ValueError(f"summary takes one folder, such as outputs/, got {' '.join(arguments)}")
    runs, page = summarise(user_path(arguments[0] if arguments else "outputs"))
    print(f"{as_text(runs)}\nopen {page}")
    return 0
