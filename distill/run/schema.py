"""All options of a run, with their defaults."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Annotated, Any

from distill.domains import Angle, Count, Fraction, Length, NotNegative, OneOf, Positive, Range, Scheduled
from distill.export.choices import FORMATS, LOD_PLACES, MOST_LODS, PIVOTS, SIZES

#: The parts of a run that plug in: each is a callable with options.
PARTS = ("guidance", "timesteps", "cameras", "scene")

#: A number or a schedule, at least 0.
Weight = Annotated[Any, Scheduled(), Range(0)]
#: A number or a schedule, in [0, 1].
Share = Annotated[Any, Scheduled(), Range(0, 1)]
#: An interval in steps; 0 is never.
Every = Annotated[int, Range(0)]
#: a, b, c of a exp(-b r) + c, and perhaps the r above which it is 0.
Curve = Annotated[list[float] | None, Length(3, 4)]


@dataclass
class Penalties:
    """Weights of the renderer's regularisers and of the distances to an input picture, numbers or schedules.

    A weight of 0 is not computed.
    """

    sparsity: Weight = 0.0
    opaqueness: Weight = 0.0
    orientation: Weight = 0.0
    smoothness: Weight = 0.0
    z_variance: Weight = 0.0
    convexity: Weight = 0.0
    eikonal: Weight = 0.0
    curvature: Weight = 0.0

    reference_rgb: Weight = 0.0
    reference_mask: Weight = 0.0
    reference_depth: Weight = 0.0
    reference_normal: Weight = 0.0

    start_rgb: Weight = 0.0
    start_mask: Weight = 0.0


@dataclass
class Reference:
    """Camera of the input picture ``image``, and how its object is cut out; see ``distill.conditions.cutout``.

    Without an elevation, it is estimated. With ``start=samples``, the scene is first fitted to views that the model draws, up
    to the fraction ``start_until`` of the run, without asking the prior. ``depth`` and ``normal`` name pictures as large as the image: nearness, bright
    for near, and normals in the camera's frame, (n + 1) / 2. ``fourth`` is what the novel-view model takes for the fourth
    number of a pose: the difference of distances, or the camera's polar angle as in Stable-Zero123; ``auto`` goes by its folder.
    """

    elevation_deg: Annotated[float | None, Range(-90, 90)] = None
    azimuth_deg: float = 0.0
    distance: Annotated[float, Range(1, 100)] = 3.2
    fov_y_deg: Annotated[float, Range(1, 150)] = 40.0
    background: Annotated[str, OneOf(("auto", "keep", "rembg"))] = "auto"
    recentre: bool = True
    fill: Annotated[float, Range(0.1, 1)] = 0.75
    start: Annotated[str, OneOf(("samples", "none"))] = "none"
    start_until: Fraction = 0.3
    depth: str | None = None
    normal: str | None = None
    fourth: Annotated[str, OneOf(("auto", "distance", "polar"))] = "auto"


@dataclass
class MeshFile:
    """A mesh to texture, see ``distill.meshes``; ``mesh=FILE`` is short for ``mesh.file=FILE`` and implies ``scene=surface``.

    ``up`` and ``front`` are axes of the file. The materials in ``keep`` stay as they are. With ``init_texture``, the scene begins
    with the mesh's own texture or colours.
    """

    file: str | None = None
    up: Annotated[str, OneOf(("auto", "+x", "-x", "+y", "-y", "+z", "-z"))] = "auto"
    front: Annotated[str, OneOf(("auto", "+x", "-x", "+y", "-y", "+z", "-z"))] = "auto"
    keep: list[str] = field(default_factory=list)
    init_texture: bool = False


@dataclass
class PriorOptions:
    """Options of loading a prior, see ``distill.load_prior``; ``dtype`` is ``auto``, ``float32``, ``bfloat16`` or ``float16``.

    Each of ``loras`` is ``path`` or ``path:weight``, each of ``embeddings`` ``path`` or ``token=path``. ``control`` is what the ControlNet is shown: ``depth``, ``normal`` or
    ``mask`` of the scene from each camera, or a picture. ``config`` is a folder with the settings of a prior in a single
    file. ``vae`` is another VAE, and ``prediction_type`` what the network predicts where its scheduler does not say it rightly.
    ``views`` is how many a multi-view prior takes together, four by default; with 1, it is one of single pictures. ``ip_mode`` is
    how ImageDream is shown its picture: ``pixel``, as a fifth view too, or ``local``, by tokens alone; ``auto`` goes by its name.
    """

    image_size: Annotated[int | None, Range(8)] = None
    dtype: Annotated[str, OneOf(("auto", "float32", "bfloat16", "float16"))] = "auto"
    checkpointing: bool = False
    compile: bool = False
    graphs: bool | None = None
    loras: list[str] = field(default_factory=list)
    controlnet: str | None = None
    control: str | None = None
    control_scale: NotNegative = 1.0
    prompt_weighting: bool = False
    vae_sample: bool = False
    config: str | None = None
    vae: str | None = None
    prediction_type: Annotated[str | None, OneOf(("epsilon", "v_prediction", "sample"))] = None
    embeddings: list[str] = field(default_factory=list)
    views: Count | None = None
    ip_mode: Annotated[str, OneOf(("auto", "pixel", "local"))] = "auto"


@dataclass
class Views:
    """View-dependent prompts, see ``distill.conditions.prompts``.

    ``front``, ``side``, ``back`` and ``overhead`` are whole prompts instead of the prompt with the view's word; ``file``
    is a YAML file with any of them.
    """

    front: str | None = None
    side: str | None = None
    back: str | None = None
    overhead: str | None = None
    file: str | None = None
    front_deg: Angle = 45.0
    overhead_deg: Angle = 60.0


@dataclass
class PerpNeg:
    """Stay away from the views that a camera does not see.

    ``curves`` is whose weights: ``threestudio``'s or the ``authors``' of Perp-Neg; ``strength`` multiplies them. Each of the
    other four replaces one curve by a, b, c of a exp(-b r) + c, and perhaps the r above which it is 0.
    """

    enabled: bool = False
    strength: NotNegative = 1.0
    curves: Annotated[str, OneOf(("threestudio", "authors"))] = "threestudio"
    front_from_side: Curve = None
    side_from_front: Curve = None
    side_from_back: Curve = None
    front_from_back: Curve = None


@dataclass
class Turns:
    """Shares of the training pictures that are not ``albedo``, numbers or schedules; together at most 1."""

    lambertian: Share = 0.0
    textureless: Share = 0.0
    normals: Share = 0.0


@dataclass
class Rendering:
    """Pictures per step, their side in pixels (a number or a schedule), how surfaces are lit, and what memory it takes.

    Attributes:
        shading: ``albedo``, ``lambertian`` (lit), ``textureless`` (lit and white), or ``normals`` (as colours).
        turns: shares of the pictures that are shaded otherwise.
        soft_light: a random share of the light comes from everywhere, rather than a tenth.
        at_once: of the batch, how many views are in memory at a time; their gradients add up. None for all. Of a multi-view prior, a
            multiple of its views, and no less.
        recompute: render again on the way back, ``chunk_rays`` rays at a time, rather than keep every sample.
        patch: side of a random window that alone is rendered in full, pixels, amid a picture of ``coarse`` pixels
            resized; None renders all of it.
        latent_until: fraction of the run in which normals and opacity stand for the prior's latent.
    """

    batch: Count = 4
    size: Annotated[Any, Scheduled(), Range(8)] = 64
    shading: Annotated[str, OneOf(("albedo", "lambertian", "textureless", "normals"))] = "albedo"
    turns: Turns = field(default_factory=Turns)
    soft_light: bool = False
    at_once: Count | None = None
    chunk_rays: Count = 16384
    recompute: bool = False
    patch: Annotated[int, Range(8)] | None = None
    coarse: Annotated[int, Range(8)] = 64
    latent_until: Fraction = 0.0


@dataclass
class Optimiser:
    """Adam, and what surrounds the step; the learning rates are options of the scene.

    Attributes:
        weight_decay: of the parameters, decoupled from the gradient as in AdamW; times the learning rate, in each step.
        reduction: of the loss over a batch, ``mean`` or ``sum``; penalties are means.
        accumulate: prompts of a library per step, over whose gradients the mean is taken; None is one for each process.
    """

    betas: Annotated[list[float], Length.exactly(2), Range(0, 1, below=True)] = field(
        default_factory=lambda: [0.9, 0.99]
    )
    eps: Positive = 1e-15
    weight_decay: NotNegative = 0.0
    reduction: Annotated[str, OneOf(("mean", "sum"))] = "mean"
    clip_norm: NotNegative = 0.0
    final_lr: NotNegative = 1.0
    ema: Annotated[float, Range(0, 1, below=True)] = 0.0
    max_bad_steps: Count = 20
    accumulate: Count | None = None


@dataclass
class Logging:
    """Output during a run; intervals in steps, 0 for never."""

    preview_every: Every = 100
    checkpoint_every: Every = 100
    keep_checkpoints: Count = 2
    tensorboard: bool = True


@dataclass
class Export:
    """Export of the finished scene; see ``distill.export.asset.export_asset``.

    ``formats`` may be written ``glb,usdz``; without it there are GLB, OBJ and PLY, and of a mesh that is textured GLB alone.
    ``lods`` are simplified meshes besides the full one, in files of their own or (``lod_as=msft``) in the GLB.
    """

    enabled: bool = True
    resolution: Annotated[int, Range(8)] = 128
    faces: Annotated[int, Range(4)] = 10_000
    iso: Positive | None = None
    largest_component: bool = True
    texture_size: Annotated[int, Range(64)] = 512
    frames: Count = 48
    picture_size: Annotated[int, Range(16, multiple=16)] = 192
    elevation_deg: Annotated[float, Range(-89, 89)] = 15.0
    up: Annotated[str, OneOf(("y", "z"))] = "y"
    formats: Annotated[list[str] | None, Length(1, None), OneOf(FORMATS)] = None
    name: str = "mesh"
    pivot: Annotated[str, OneOf(PIVOTS)] = "scene"
    size_m: Annotated[float | None, Range(*SIZES)] = None
    lods: Annotated[int, Range(0, MOST_LODS)] = 0
    lod_as: Annotated[str, OneOf(LOD_PLACES)] = "files"


@dataclass
class Config:
    """One run, or with ``prompts`` one run per line of a file; with ``shard=i/n``, of every n-th line from the i-th.

    ``generator`` is the folder of a ``distill amortise`` run, which makes the scene to begin with from the prompt; with
    ``generator_mix``, from what lies between the prompt and this one, ``generator_share`` of the way.

    ``stages`` are runs that begin with one another, see ``distill.run.stages``; ``earlier``, which they make, is what differs in
    those before the last.

    With ``seeds=n``, a run is n of them, from ``seed`` on, in folders below its own; ``keep=best`` makes the files of the one
    that ``judge`` prefers, ``embedded``, ``things`` or a folder with a CLIP, those of the run. ``watchdog`` ends a run that has collapsed,
    see ``distill.run.watchdog``; with ``retries=n``, up to n further seeds take the place of those.

    ``guidance_weight`` is the weight of the loss beside the penalties, a number or a schedule. ``view`` serves a page at
    ``view_address`` and ``view_port``, 0 for any free port, see ``distill.live.server``.
    """

    prompt: str = ""
    prompts: str | None = None
    shard: str | None = None
    negative_prompt: str = ""
    source_prompt: str = ""
    image: str | None = None
    novel_view: str = "embedded"
    mesh: MeshFile = field(default_factory=MeshFile)
    view_words: Annotated[str, OneOf(("auto", "four", "sixteen", "none"))] = "auto"
    views: Views = field(default_factory=Views)
    perp_neg: PerpNeg = field(default_factory=PerpNeg)
    unconditional: Annotated[str, OneOf(("auto", "null"))] = "auto"
    iterations: Annotated[int, Range(0)] = 400
    guidance_weight: Weight = 1.0
    particles: Count = 1
    seed: Annotated[int, Range(0, 2**64 - 1)] = 0
    seeds: Count = 1
    keep: Annotated[str, OneOf(("all", "best"))] = "all"
    judge: str | None = None
    retries: Annotated[int, Range(0)] = 0
    watchdog: bool = True
    device: str = "auto"
    prior: str = "embedded"
    prior_options: PriorOptions = field(default_factory=PriorOptions)
    max_vram: str | None = None
    output_dir: str | None = None
    init: str | None = None
    generator: str | None = None
    generator_mix: str = ""
    generator_share: Fraction = 0.5
    stages: list[str] = field(default_factory=list)
    earlier: dict[str, Any] = field(default_factory=dict)
    resume: bool = False
    view: bool = False
    view_address: str = "127.0.0.1"
    view_port: Annotated[int, Range(0, 65535)] = 8765
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


def known_options(schema: type = Config, prefix: str = "") -> list[str]:
    """Dotted names of the schema's options, groups included."""
    names = []
    for item in fields(schema):
        names.append(prefix + item.name)
        inner = item.default_factory() if item.default_factory is not MISSING else None
        if is_dataclass(inner):
            names += known_options(type(inner), f"{prefix}{item.name}.")
    return names


def default_of(option: str) -> object:
    """The schema's default of an option with a dotted name."""
    value: Any = Config()
    for name in option.split("."):
        value = getattr(value, name)
    return value
