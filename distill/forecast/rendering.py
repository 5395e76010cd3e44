"""Forecast the memory that rendering a scene takes, from small renderings of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig

from distill.cameras import turntable
from distill.contracts import Scene, Step
from distill.forecast.network import LiveBytes
from distill.job import make_optimiser
from distill.options import schedule
from distill.renderers import reference
from distill.run.assembly.scenes import scene_maker

#: Bytes that a rendered pixel keeps whatever is computed again: its ray, its sums, and the picture.
_PIXEL = 128
#: Sides of the small renderings, pixels: what is linear in the rays is found from two.
_SIDES = (16, 32)
#: Of hash tables, whose sizes do not change what a ray keeps.
_SMALL_TABLE = 8


class Rendering(NamedTuple):
    """Bytes of a scene: of every particle's parameters with their gradients and averages, and of its buffers, such as its cells;
    that rendering some views, or the update of the cells, keeps at most, with every cell full where there are cells; and as the
    scene begins.
    """

    parameters: int
    full: int
    beginning: int


class _Peaks(NamedTuple):
    """The most bytes on the way forward, and on both ways."""

    forward: float
    total: float


def rendered(config: DictConfig, views: int, device: torch.device) -> Rendering:
    """Measure a configuration's scene, there or on the CPU, by small renderings.

    A large table's gradient would hide what the few rays of a small rendering keep. So rays are measured with small tables, in
    which alone the peak in the backward pass is that of the rays, and the gradients by a rendering of next to no rays.
    """
    elsewhere = device.type == "cuda" and not torch.cuda.is_available()
    if elsewhere:
        device = torch.device("cpu")
    # What encodes on a GPU may not run here.
    here = {"backend": "auto"} if "backend" in config.scene and device.type != "cuda" else {}
    tables = (
        {"log2_table_size": _SMALL_TABLE} if config.scene.get("log2_table_size", 0) > _SMALL_TABLE else {}
    )
    make = scene_maker(config, **here)
    scene: Scene = make(seed=0).to(device)
    gradient = sum(
        p.numel() * p.element_size() for group in scene.parameter_groups().values() for p in group.parameters
    )
    kept_beside = list(scene.buffers()) if isinstance(scene, torch.nn.Module) else []
    buffers = sum(b.numel() * b.element_size() for b in kept_beside)
    # Each with its gradient and Adam's two averages, and the run's own where there is one.
    parameters = config.particles * ((5 if config.optimiser.ema else 4) * gradient + buffers)
    probe: Scene = make(seed=0, **tables).to(device)
    gradients = _warm(config, scene, 4)[0].total
    # On a CPU, a table's gradient has a copy for each thread.
    copies = gradient if elsewhere else _warm(config, scene, 4, penalties=False)[0].total
    rays = int(views * _side(config) ** 2)

    def kept() -> int:
        at = _linear(config, probe)
        part = min(rays, config.render.chunk_rays) if config.render.recompute else rays
        found = at(part)
        # Gradients are there while what the way forward kept still is, or together where little else is.
        most = max(found.total, found.forward + copies, gradients)
        return int(most + (rays * _PIXEL if config.render.recompute else 0))

    said = config.optimiser
    optimiser = make_optimiser(probe, tuple(said.betas), said.eps, said.weight_decay)
    full = kept()
    with LiveBytes() as live:
        probe.update(Step(), optimiser, torch.Generator().manual_seed(0))
    beginning = max(kept(), live.peak)
    return Rendering(parameters, max(full, beginning), beginning)


def _side(config: DictConfig) -> float:
    """The side of the largest picture that is rendered in one piece."""
    size = schedule("render.size", config.render.size, config.iterations)
    side = size if isinstance(size, (int, float)) else max(size.start, size(1.0))
    return min(side, config.render.patch or side)


def _linear(config: DictConfig, probe: Scene) -> Callable[[int], _Peaks]:
    """Return the peaks by the number of rays, from two small renderings."""
    small, large = _warm(config, probe, *_SIDES)
    few, many = (side**2 for side in _SIDES)

    def at(rays: int) -> _Peaks:
        slopes = [max(b - a, 0) / (many - few) for a, b in zip(small, large, strict=True)]
        return _Peaks(*(max(b + (rays - many) * slope, 0) for b, slope in zip(large, slopes, strict=True)))

    return at


def _warm(config: DictConfig, scene: Scene, *sides: int, penalties: bool = True) -> list[_Peaks]:
    """Peaks of renderings after a first one: what is made once for all, such as the cells' bytes or a table of light, is no part."""
    _peaks(config, scene, 4, penalties)
    return [_peaks(config, scene, side, penalties) for side in sides]


def _peaks(config: DictConfig, scene: Scene, side: int, penalties: bool) -> _Peaks:
    """Render a scene once as the configuration says, with or without its penalties, forward and back."""
    known = (*reference.PENALTIES, *reference.START)
    names = [name for name, weight in config.penalties.items() if penalties and weight and name not in known]
    options: dict[str, Any] = {}
    if "shading" in scene.features:
        # Lit pictures keep the most, whatever their share is.
        lit = any(config.render.turns.values())
        options["shading"] = "lambertian" if lit else config.render.shading
    with LiveBytes() as live:
        seen = scene.render(
            turntable(1), side, side, generator=torch.Generator().manual_seed(0), penalties=names,
            normals=config.render.latent_until > 0 or config.prior_options.control == "normal", **options,
        )  # fmt: skip
        forward = live.peak
        (seen.rgb.sum() + sum(seen.penalties.values())).backward()
    for group in scene.parameter_groups().values():
        for parameter in group.parameters:
            parameter.grad = None
    return _Peaks(forward, live.peak)
