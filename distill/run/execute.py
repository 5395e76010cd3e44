"""Run a configuration: train, export and describe an asset."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from distill import loop
from distill.asset import Asset
from distill.conditions.picture import Picture, write_beside
from distill.contracts import Learner, Prior, Render, Scene, View
from distill.devices import pick_device
from distill.export.pictures import write_pictures
from distill.files.atomic import clear, write_atomic
from distill.files.checkpoint import load_checkpoint
from distill.files.lock import hold
from distill.files.paths import user_path
from distill.job import Job, OnStep, State, take
from distill.live.desk import Desk
from distill.live.server import watched
from distill.parts.made import no_prior
from distill.ranks import ALONE, Ranks
from distill.run.assembly.initial import check_init
from distill.run.assembly.prior import check_loaded, check_prior, check_prompt
from distill.run.config.compose import compose_config
from distill.run.config.overrides import as_overrides
from distill.run.config.plugins import code_changed
from distill.run.folder.failures import ExportFailed, check_collapse, exported, forget, note, noted
from distill.run.folder.folders import check_unused, claim, is_finished
from distill.run.folder.manifest import describe, finish, outline
from distill.run.folder.stored import other_code, renew
from distill.run.journal import Interrupted, Journal, check_there, seconds_before
from distill.run.several import stages
from distill.run.several.judge import check_judge, scored
from distill.run.several.seeding import several
from distill.run.several.seeds import reopen, run_seeds
from distill.run.several.staging import assemble_stage, begin, check_priors, told_of
from distill.run.signals import stop_signals
from distill.run.watchdog import Collapsed, watch

log = logging.getLogger(__name__)

#: What a configuration calls a prior that was given as an object without a name.
UNNAMED = "given"


def generate(
    prompt: str,
    *,
    output_dir: str | Path | None = None,
    prior: object = None,
    **options: Any,
) -> Asset:
    """Make a 3D asset from a prompt.

    Args:
        prompt: what to make.
        output_dir: where its files go; by default a new folder under ``outputs``.
        prior: the name of one, a folder in the diffusers layout, or a loaded prior; by default the bundled one that knows the
            prompt, ``embedded`` or ``things``.
        **options: as on the command line, e.g. ``iterations=600, guidance="sds", **{"guidance.scale": 10}``.

    Raises:
        ValueError: an option or the prompt is wrong, in one line.
    """
    if options.get("prompts") is not None:
        raise ValueError(
            "distill.generate makes one asset, and prompts= names a file of many; call it for each of them, or make the command "
            f"distill prompts={options['prompts']}"
        )
    named, loaded = given(prior)
    overrides = {"prompt": prompt, **named, **options}
    if output_dir is not None:
        overrides["output_dir"] = str(output_dir)
    config = compose_config(as_overrides(overrides), loaded=loaded is not None)
    if loaded:
        check_loaded(config)
    return run(config, loaded)


def given(prior: object) -> tuple[dict[str, str], Prior | None]:
    """The option that names a prior, given by name, folder or as an object, and the object; none for None.

    Raises:
        ValueError: it is something else.
    """
    if prior is None:
        return {}, None
    loaded = prior if isinstance(prior, Prior) else None
    if not (loaded or isinstance(prior, (str, Path))):
        raise ValueError(
            f"prior must be a name, a folder, or a loaded prior (distill.contracts.Prior), got {no_prior(prior)}"
        )
    return {"prior": (loaded.name or UNNAMED) if loaded else str(prior)}, loaded


def run(config: DictConfig, prior: Prior | None = None, ranks: Ranks = ALONE) -> Asset:
    """Train, export and describe one asset, or resume one.

    Args:
        config: of the run.
        prior: a loaded prior, which saves loading it again.
        ranks: the processes that share the views of each step, of which this is the first.

    Raises:
        ValueError: something in the configuration is wrong, in one line.
        Interrupted: a signal asked the run to stop; a checkpoint holds where it was.
        Diverged: too many steps in a row were not finite.
        Collapsed: there is nothing left to train, see ``distill.run.watchdog``.
        ExportFailed: the scene has no surface.
        NoSeedFinished: of several seeds, all failed in one of these three ways.
    """
    started = time.perf_counter()
    check_unused(config)
    if said := check_prompt(config):
        log.warning("%s", said)
    check_judge(config)
    ranks.meet()
    with watched(config) as desk:
        if several(config):
            return of_seeds(config, prior, desk)
        job = begin(config, prior, ranks)
        folder = claim(config)
        with hold(folder):
            return carry_out(config, folder, job, started, desk)


def of_seeds(config: DictConfig, prior: Prior | None, desk: Desk | None) -> Asset:
    """Make an asset for each seed of a run; returns the best one, or the first, with the run's folder and manifest."""
    device = pick_device(config.device)
    if prior is None:
        check_prior(config, device)
    if config.earlier:
        check_priors(config, device, given=prior is not None)
    check_init(stages.plan(config, Path())[0])
    folder = claim(config)
    with hold(folder):
        made = run_seeds(config, folder, prior, carry_out, desk)
        log.info("results in %s: open %s", folder, folder / "report.html")
        return replace(made.asset or reopen(made, prior), folder=folder, manifest=noted(folder))


def carry_out(config: DictConfig, folder: Path, job: Job, started: float, desk: Desk | None = None) -> Asset:
    """Train, export and describe an assembled run in a folder that is held; a failure is noted in its manifest.

    Of several stages, those before the last have folders of their own below the run's, and what is finished is not made again.

    Args:
        config: of the run.
        folder: its folder.
        job: its parts, see ``begin``.
        started: when, as ``time.perf_counter`` has it.
        desk: of the page that shows the run, if one does.
    """
    with noting_training(config, folder, job) as before:
        if config.earlier:
            return _in_stages(config, folder, job, desk, before)
        return _carry_out(config, folder, job, started, desk, before)


def _in_stages(
    config: DictConfig, folder: Path, job: Job, desk: Desk | None, before: Mapping[str, Any]
) -> Asset:
    """Carry out one stage after the other, of which ``job`` is the first."""
    plan, places = stages.plan(config, folder), stages.places(config)
    at = 0  # which stage's parts the job has
    for number, (one, place) in enumerate(zip(plan, places, strict=True)):
        own = user_path(one.output_dir) if number < len(plan) - 1 else folder
        if own != folder and is_finished(own):
            log.info("the stage %s is finished, in %s", place.said, own)
            continue
        began = time.perf_counter()
        log.info("stage %s: %d steps", place.said, one.iterations)
        if number != at:
            if desk:
                desk.say("loading")
            job.state.optimiser.state.clear()
            job, at = assemble_stage(one, plan[at], job.prior), number
        if own == folder:
            return _carry_out(one, folder, job, began, desk, before, place)
        own.mkdir(parents=True, exist_ok=True)
        with hold(own):
            write_atomic(own / "config.yaml", OmegaConf.to_yaml(one))
            with noting_training(one, own, job) as told:
                _carry_out(one, own, job, began, desk, told, place)
    raise AssertionError("unreachable")


@contextmanager
def noting_training(config: DictConfig, folder: Path, job: Job) -> Iterator[Mapping[str, Any]]:
    """Note in a held folder's manifest how a run fails within the context; arguments as for ``carry_out``.

    Gives what the manifest says of later exports, which is kept.

    Raises:
        Collapsed: the run has collapsed before, and is watched still.
    """
    clear(folder)
    renew(folder, config)
    if config.watchdog:
        check_collapse(folder)
    before = exported(folder)
    forget(folder)
    try:
        yield before
    except Interrupted:
        raise
    except Exception as error:  # a custom loss fails in any way
        seconds = {"train": seconds_before(folder / "metrics.jsonl", job.state.step)}
        note(folder, {**outline(config, job), **before, "step": job.state.step, "seconds": seconds}, error)
        raise


def _carry_out(
    config: DictConfig,
    folder: Path,
    job: Job,
    started: float,
    desk: Desk | None,
    before: Mapping[str, Any],
    place: stages.Place = stages.ALONE,
) -> Asset:
    saved = load_checkpoint(folder / "checkpoints", job.prior.device) if config.resume else None
    if saved:
        job.state.load_state_dict(saved)
        log.info("resuming %s at step %d", folder, job.state.step)
        if changed := code_changed(saved.get("code", {}), config):
            log.warning("%s", other_code(changed, job.state.step, config.iterations))
    loaded, spent = time.perf_counter(), seconds_before(folder / "metrics.jsonl", job.state.step)
    train(config, folder, job, desk, place=place)
    if desk:
        desk.say("exporting")
    manifest = {**describe(config, job), **before}
    manifest["seconds"] = {"load": loaded - started, "train": spent + time.perf_counter() - loaded}
    if place.number == place.total > 1:
        manifest["stages"] = told_of(folder, config.iterations, place, manifest["seconds"])
    if isinstance(job.picture, Picture):
        write_beside(job.picture, job.views[0], folder / "reference.png", config.export.picture_size)
    if len(job.scenes) == 1:
        asset = describe_and_export(config, folder, job.scenes[0], job.views[0], manifest)
    else:
        asset = export_particles(config, folder, job, manifest)
    check_there(folder)
    if desk:
        desk.say("finished", f"the results are in {folder}")
    log.info(
        "%.0f s in total; results in %s: open %s",
        sum(manifest["seconds"].values()),
        folder,
        folder / "report.html",
    )
    return asset


def train(
    config: DictConfig,
    folder: Path,
    job: Job,
    desk: Desk | None = None,
    *,
    place: stages.Place = stages.ALONE,
    notes: Callable[[], Mapping[str, float]] | None = None,
    show: Callable[[int], None] | None = None,
) -> None:
    """Run the loop with its journal; saves a last checkpoint and what the guidance learnt.

    Args:
        config: of the run.
        folder: its folder.
        job: its parts.
        desk: of the page that shows the run, if one does.
        place: which of the run's stages it is.
        notes: further figures of each step, for the log.
        show: writes previews, given the steps done, instead of the journal's own.

    Raises:
        Interrupted: a signal asked the run to stop.
    """
    state, ranks = job.state, job.ranks
    ranks.tell((str(folder), state.step))
    with stop_signals() as asked:
        stop = ranks.heed(asked)
        ranks.begin(state.parameters())
        journal = Journal(
            folder, config.log, config.iterations, state.step, job.views, stop, desk, notes, show, place
        )
        if desk:
            desk.begin(
                " \N{MIDDLE DOT} ".join(
                    filter(None, (config.prompt or Path(config.image or config.prompts).name, place.said))
                ),
                folder,
                config.iterations,
                state.step,
                job.views,
                stop,
            )
        on_step: OnStep = guarded(journal, config, job) if config.watchdog else journal
        try:
            loop.train(job, on_step)
            if state.step == config.iterations:
                journal.checkpoint(state)
            ranks.part()
        except (loop.OutOfMemory, Collapsed):
            journal.checkpoint(state)
            raise
        finally:
            journal.close()
    if isinstance(job.guidance, Learner):
        job.guidance.save(folder)
    # Asked in the last step, too: what comes after it is not to begin.
    if state.step < config.iterations or stop.is_set():
        raise Interrupted(
            f"stopped at step {state.step} of {config.iterations}; continue with resume=true; results so far in {folder}"
        )
    if state.average is not None:
        take(state.scene, state.average)


def guarded(journal: Journal, config: DictConfig, job: Job) -> OnStep:
    """The journal, and after it a look at each scene's collapse, which ends the run."""
    after = [watch(config.iterations, "volume" in scene.features) for scene in job.scenes]

    def on_step(state: State, metrics: dict[str, float], picture: Render) -> bool:
        stop = journal(state, metrics, picture)
        after[job.drawn()](state.step, picture)
        return stop

    return on_step


def describe_and_export(
    config: DictConfig, folder: Path, scene: Scene, view: View, manifest: dict[str, Any]
) -> Asset:
    """Write one scene's files, its judge's score, its manifest and its report."""
    started = time.perf_counter()
    manifest |= scored(config, view)
    if config.export.enabled:
        manifest["export"] = export(config.export, folder, scene, view)
    manifest["seconds"]["export"] = time.perf_counter() - started
    finish(folder, manifest)
    return Asset(config.prompt, folder, scene, view, manifest, export=config.export)


def export_particles(config: DictConfig, folder: Path, job: Job, manifest: dict[str, Any]) -> Asset:
    """Write every particle's files to a folder of its own, ``particle-1`` and so on, then the run's report.

    Raises:
        ExportFailed: scenes have no surface; the others' files are written all the same.
    """
    particles, failures = [], []
    for number, (scene, view) in enumerate(zip(job.scenes, job.views, strict=True), start=1):
        own = folder / f"particle-{number}"
        own.mkdir(exist_ok=True)
        mine = {**manifest, **exported(own), "particle": number, "seconds": dict(manifest["seconds"])}
        try:
            particles.append(describe_and_export(config, own, scene, view, mine))
        except ExportFailed as error:
            failures.append(f"particle {number}: {error}")
    if failures:
        raise ExportFailed("; ".join(failures))
    manifest["particles"] = [asset.folder.name for asset in particles]
    manifest["seconds"]["export"] = sum(asset.manifest["seconds"]["export"] for asset in particles)
    finish(folder, manifest)
    return Asset(
        config.prompt, folder, job.scenes[0], job.views[0], manifest, tuple(particles), config.export
    )


def export(options: Mapping[str, Any], folder: Path, scene: Scene, view: View) -> dict[str, Any]:
    """Write pictures of a scene with sides, then the scene's own files; an empty scene still has pictures.

    Raises:
        ExportFailed: there is nothing to write, for example no surface.
    """
    found: dict[str, Any] = {"seconds": {}}
    try:
        if "sides" in scene.features:
            found["seconds"] |= write_pictures(folder, view, options)
        for write in scene.assets().values():
            figures = write(folder, view, options)
            found["seconds"] |= figures.pop("seconds", {})
            found |= figures
    except ValueError as error:
        raise ExportFailed(f"{error} (the trained scene is kept among the checkpoints)") from error
    return found
