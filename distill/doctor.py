"""``distill doctor``: can this machine run what was chosen, and what will it cost?

``distill.machine`` looks at the machine, and this module at the run: its files, its prior, and what a step will take.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from distill.convert import pickled
from distill.devices import pick_device
from distill.inputs import fitting, looks
from distill.machine import Finding, backends, devices, ffmpeg, memory, places, smoke
from distill.priors import inversion
from distill.priors.autoencoder import find_vae
from distill.priors.load import family_of, read_scheduler
from distill.priors.source import Source, find, offline
from distill.priors.table import MODELS
from distill.priors.whole import check_complete, check_whole
from distill.run.several import stages
from distill.run.several.queue import Part
from distill.wording import counted


def doctor(parts: Sequence[Part], *, as_json: bool = False) -> int:
    """Check everything that a command needs, print the findings, and return the exit code: 0 if it can run.

    Args:
        parts: of a file of prompts, or the one of another command, which has no prompts.
        as_json: print JSON.
    """
    findings = list(examine_all(parts))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            print(f"{finding.verdict:>5}  {finding.name:{width}}  {finding.said}")
    return 1 if any(finding.verdict == "wrong" for finding in findings) else 0


def examine_all(parts: Sequence[Part]) -> Iterator[Finding]:
    """Yield the findings of all parts, in order and without repetition."""
    seen = set[Finding]()
    for number, part in enumerate(parts):
        for finding in examine(*part):
            if finding not in seen:
                seen.add(finding)
                yield replace(finding, name=f"{finding.name}, {part}") if number else finding


def examine(config: DictConfig, prompts: Sequence[str] = ()) -> Iterator[Finding]:
    """Yield all findings of a configuration, in order.

    Args:
        config: of a run, or of a part of a file of prompts.
        prompts: of that part.
    """
    plan = stages.plan(config, Path())
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding("torch", "ok", f"{torch.__version__}, {torch.get_num_threads()} threads")
    device = None
    for finding in devices(config.device):
        yield finding
    try:
        device = pick_device(config.device)
        yield Finding("device", "ok", f"{device} for device={config.device}")
    except ValueError as error:
        yield Finding("device", "wrong", str(error))
    yield from backends(device, str(config.scene.get("backend", "auto")))
    yield from places(config)
    yield ffmpeg(config.export.enabled)
    yield from inputs(plan[0], prompts)
    source = None
    worded = bool(config.prompt or config.prompts)  # a picture alone asks no prior of words
    for finding, found in the_prior(plan[0].prior, plan[0].prior_options.config) if worded else ():
        source = found or source
        yield finding
    if source is not None:
        yield from beside(plan[0], source)
    for kind in dict.fromkeys(("cpu", device.type if device else "cpu")):
        yield smoke(torch.device(kind))
    for one, place in zip(plan, stages.places(config) or [stages.ALONE], strict=True):
        # Another prior, or a mesh that a stage is still to make, is another doctor's.
        if (
            source is None
            or device is None
            or one.prior != plan[0].prior
            or (one.mesh.file and place.number > 1)
        ):
            continue
        for finding in forecast(one, source, device):
            yield replace(finding, name=f"{finding.name}, {place.name}") if place.total > 1 else finding


def forecast(config: DictConfig, source: Source, device: torch.device) -> Iterator[Finding]:
    """Check whether the options fit the prior, and forecast the cost of a step."""
    yield from fits(config, source)
    try:
        yield from costs(config, source, device)
    except Exception as error:  # what a forecast of a broken folder fails with
        yield Finding("memory", "wrong", f"cannot be told: {' '.join(str(error).split())}")


def fits(config: DictConfig, source: Source) -> Iterator[Finding]:
    """Check the options that must fit the prior."""
    from distill.forecast.network import shadow

    options = config.prior_options
    try:
        prior = shadow(
            source,
            torch.float32,
            options.image_size,
            controlnet=options.controlnet,
            views=options.views,
            ip_mode=options.ip_mode,
        )
    except Exception as error:  # what a broken folder fails with
        yield Finding("prior_options", "wrong", " ".join(str(error).split()))
        return
    for name, look in fitting(config, prior):
        yield looked(name, look)


def inputs(config: DictConfig, prompts: Sequence[str] = ()) -> Iterator[Finding]:
    """Check the user's files that a run reads, and its output folder."""
    for name, look in looks(config, prompts):
        yield looked(name, look)


def looked(name: str, look: Callable[[], str]) -> Finding:
    """Run a check; the finding is the error with which the run would refuse."""
    try:
        return Finding(name, "ok", look())
    except (ValueError, OSError) as error:
        return Finding(name, "wrong", " ".join(str(error).split()))


def the_prior(name: str, settings: str | None = None) -> Iterator[tuple[Finding, Source | None]]:
    """Check whether the selected prior is available or can be downloaded, and which known ones are available."""
    from huggingface_hub import get_token, try_to_load_from_cache

    cached = [
        known
        for known, model in MODELS.items()
        if isinstance(
            try_to_load_from_cache(model.repository, "model_index.json", revision=model.revision or None), str
        )
    ]
    yield (
        Finding("cached models", "note", ", ".join(cached) or "none of those that 'distill priors' lists"),
        None,
    )
    gated = name in MODELS and MODELS[name].gated
    said = "there" if get_token() else "none; gated models need one: hf auth login"
    yield (
        Finding(
            "hub token", "ok" if get_token() else "wrong" if gated and name not in cached else "note", said
        ),
        None,
    )
    yield (
        Finding(
            "hub", "note", "HF_HUB_OFFLINE is set" if offline() else "reached only where a model is missing"
        ),
        None,
    )
    try:
        source = find(name, settings)
    except ValueError as error:
        yield Finding("prior", "wrong", str(error)), None
        return
    try:
        family, index = family_of(source.folder)
        check_whole(source, family, index)
        if not pickled(source.folder):
            check_complete(source, family, index)
        licence = source.licence or "of unknown licence"
        yield Finding("prior", "ok", f"{name}: {source.file or source.folder}, {licence}"), source
    except ValueError as error:
        yield Finding("prior", "wrong", str(error)), source


def beside(config: DictConfig, source: Source) -> Iterator[Finding]:
    """Check the options that modify or describe the prior."""
    options = config.prior_options

    def vae(index: dict[str, Any]) -> str:
        found = find_vae(options.vae, source, index)
        return str(found.file or found.folder)

    def prediction(index: dict[str, Any]) -> str:
        return str(read_scheduler(source, index, options.prediction_type).config.prediction_type)

    def embeddings(index: dict[str, Any]) -> str:
        family, _ = family_of(source.folder)
        found = [inversion.parse(entry) for entry in options.embeddings]
        inversion.check(found, source, family, index)
        return ", ".join(f"{each.token} ({each.path})" for each in found)

    looks = {"vae": vae, "prediction_type": prediction, "embeddings": embeddings}
    for name, look in looks.items():
        if options[name]:
            try:
                _, index = family_of(source.folder)
                yield Finding(f"prior_options.{name}", "ok", look(index))
            except ValueError as error:
                yield Finding(f"prior_options.{name}", "wrong", str(error))


def costs(config: DictConfig, source: Source, device: torch.device) -> Iterator[Finding]:
    """Forecast memory and time of a step, from the networks' configurations and a small rendering."""
    from distill.forecast.cost import SHARE, cost
    from distill.forecast.network import speed_of
    from distill.priors.dtypes import default_dtype
    from distill.run.assembly.fit import fit

    if config.max_vram:
        try:
            fit(config, source, device)
        except ValueError as error:
            yield Finding("max_vram", "wrong", str(error))
            return
        chosen = config.render
        yield Finding(
            "max_vram", "ok",
            f"{config.max_vram}: render.at_once={chosen.at_once or chosen.batch}, render.recompute={chosen.recompute}, "
            f"prior_options.checkpointing={config.prior_options.checkpointing}",
        )  # fmt: skip
    found = cost(config, source, device)
    prior = found.prior
    said = (
        f"{found.peak / 1e9:.2f} GB: weights {prior.weights / 1e9:.2f}, VAE's way back {prior.encoding / 1e9:.2f}, network's "
        f"call {prior.call / 1e9:.2f}, rendering at most {found.rendering / 1e9:.2f} "
        f"({found.beginning / 1e9:.2f} in the first step), scene {found.scene / 1e9:.2f}; the driver comes on top"
    )
    room = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else memory()
    outcome, remedy = "ok", ""
    if room and found.peak > SHARE * room:
        # A scene rarely fills its cube, and a step that runs out of memory is tried again with fewer views.
        outcome = "wrong" if found.first_peak > SHARE * room else "note"
        remedy = f"; there are {room / 1e9:.0f} GB: try max_vram={room / 1e9:.0f}GB, or a smaller prior"
    yield Finding("memory", outcome, said + remedy)
    options = config.prior_options
    speed = speed_of(
        device, default_dtype(device) if options.dtype == "auto" else getattr(torch, options.dtype)
    )
    seconds = found.operations / speed
    yield Finding(
        "time",
        "note",
        f"at least {seconds:.2g} s a step, {lasting(seconds * config.iterations)} for {counted(config.iterations, 'step')} "
        f"({found.operations / 1e9:.0f} billion operations at {speed / 1e12:.2f} trillion a second); rendering comes on top",
    )


def lasting(seconds: float) -> str:
    """Format a duration in minutes or, from two hours on, in hours."""
    minutes = seconds / 60
    number, unit = (minutes, "min") if minutes < 120 else (minutes / 60, "h")
    return f"{number:.0f} {unit}" if number >= 10 else f"{number:.2g} {unit}"
