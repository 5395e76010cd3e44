"""Every option of a run, with its default."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Penalties:
    """Weights of the renderer's regularisers and of the distances to an input picture, numbers or schedules.

    A weight of 0 is not computed.
    """

    sparsity: Any = 0.0
    opaqueness: Any = 0.0
    orientation: Any = 0.0
    smoothness: Any = 0.0

    reference_rgb: Any = 0.0
    reference_mask: Any = 0.0
    reference_depth: Any = 0.0
    reference_normal: Any = 0.0


@dataclass
class Reference:
    """How the picture of ``image`` was taken, and how its object is cut out; see ``distill.conditions.cutout``.

    Without an elevation, it is estimated. ``depth`` and ``normal`` name pictures as large as the image: nearness, bright
    for near, and normals in the camera's frame, (n + 1) / 2.
    """

    elevation_deg: float | None = None
    azimuth_deg: float = 0.0
    distance: float = 3.2
    fov_y_deg: float = 40.0
    background: str = "auto"
    recentre: bool = True
    fill: float = 0.75
    depth: str | None = None
    normal: str | None = None


@dataclass
class PriorOptions:
    """How a prior is loaded, see ``distill.load_prior``; ``dtype`` is ``auto``, ``float32``, ``bfloat16`` or ``float16``.

    Each of ``loras`` is ``path`` or ``path:weight``. ``control`` is what the ControlNet is shown: ``depth``, ``normal`` or
    ``mask`` of the scene from each camera, or a picture.
    """

    image_size: int | None = None
    dtype: str = "auto"
    checkpointing: bool = False
    compile: bool = False
    loras: list[str] = field(default_factory=list)
    controlnet: str | None = None
    control: str | None = None
    control_scale: float = 1.0
    prompt_weighting: bool = False


@dataclass
class Views:
    """How a camera's side is told in words, see ``distill.conditions.prompts``.

    ``front``, ``side``, ``back`` and ``overhead`` are whole prompts instead of the prompt with the view's word; ``file``
    is a YAML file with any of them.
    """

    front: str | None = None
    side: str | None = None
    back: str | None = None
    overhead: str | None = None
    file: str | None = None
    front_deg: float = 45.0
    overhead_deg: float = 60.0


@dataclass
class PerpNeg:
    """Stay away from the views that a camera does not see; each curve is a, b, c of a exp(-b r) + c."""

    enabled: bool = False
    front_from_side: list[float] = field(default_factory=lambda: [4.0, 0.5, -2.426])
    side_from_front: list[float] = field(default_factory=lambda: [4.0, 0.5, -2.426])
    side_from_back: list[float] = field(default_factory=lambda: [1.0, 0.5, -0.606])
    front_from_back: list[float] = field(default_factory=lambda: [1.0, 0.5, 0.967])


@dataclass
class Rendering:
    """Pictures per step, their side in pixels (a number or a schedule), how surfaces are lit, and what memory it takes.

    Attributes:
        at_once: of the batch, how many views are in memory at a time; their gradients add up. None for all.
        recompute: render again on the way back, ``chunk_rays`` rays at a time, rather than keep every sample.
        patch: side of a random window that alone is rendered in full, pixels, amid a picture of ``coarse`` pixels
            resized; None renders all of it.
        latent_until: fraction of the run in which normals and opacity stand for the prior's latent.
    """

    batch: int = 4
    size: Any = 64
    shading: str = "albedo"
    at_once: int | None = None
    chunk_rays: int = 16384
    recompute: bool = False
    patch: int | None = None
    coarse: int = 64
    latent_until: float = 0.0


@dataclass
class Optimiser:
    """Adam: peak learning rates per kind of parameter, and what surrounds the step."""

    encoding: float = 0.01
    mlp: float = 0.01
    background: float = 0.001
    image: float = 0.03
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    eps: float = 1e-15
    clip_norm: float = 0.0
    final_lr: float = 1.0
    ema: float = 0.0
    max_bad_steps: int = 20


@dataclass
class Logging:
    """What is written during a run; intervals in steps, 0 for never."""

    preview_every: int = 100
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    tensorboard: bool = True


@dataclass
class Export:
    """What is made of the finished scene; see ``distill.export.export_asset``."""

    enabled: bool = True
    resolution: int = 128
    faces: int = 10_000
    iso: float | None = None
    largest_component: bool = True
    texture_size: int = 512
    frames: int = 48
    picture_size: int = 192
    elevation_deg: float = 15.0
    up: str = "y"


@dataclass
class Config:
    """One run, or with ``prompts`` one run per line of a file."""

    prompt: str = ""
    prompts: str | None = None
    negative_prompt: str = ""
    source_prompt: str = ""
    image: str | None = None
    novel_view: str = "embedded"
    view_words: str = "auto"
    views: Views = field(default_factory=Views)
    perp_neg: PerpNeg = field(default_factory=PerpNeg)
    unconditional: str = "auto"
    iterations: int = 400
    particles: int = 1
    seed: int = 0
    device: str = "auto"
    prior: str = "embedded"
    prior_options: PriorOptions = field(default_factory=PriorOptions)
    max_vram: str | None = None
    output_dir: str | None = None
    init: str | None = None
    resume: bool = False
    render: Rendering = field(default_factory=Rendering)
    penalties: Penalties = field(default_factory=Penalties)
    optimiser: Optimiser = field(default_factory=Optimiser)
    reference: Reference = field(default_factory=Reference)
    log: Logging = field(default_factory=Logging)
    export: Export = field(default_factory=Export)
    guidance: Any = None
    timesteps: Any = None
    cameras: Any = None
    scene: Any = None
