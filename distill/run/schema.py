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
    """Weights of the scene's regularisers and of the distances to an input picture.

    A weight of 0 is not computed. Most regularisers are means over the rays of a step's pictures, and the distances of colours and
    opacities mean squared errors.

    Attributes:
        sparsity: weight of sqrt(o^2 + 0.01), o a ray's opacity: empty space stays empty.
        opaqueness: weight of the binary entropy of a ray's opacity: rays hit or miss.
        orientation: weight of normals of visible points that face away from the camera, squared.
        smoothness: weight of differences between the normals of neighbouring visible points, squared.
        z_variance: weight of the variance of the depth along rays that stop more than half of the light: surfaces become thin.
        convexity: weight of hollows, by neighbouring normals; negative where the object bulges.
        eikonal: weight of (norm of grad d - 1)^2, of ``scene=sdf``, whose d stays a distance.
        curvature: weight of the absolute Laplacian of the distance, of ``scene=sdf``.
        reference_rgb: weight of the distance to the colours of ``image``, from its camera.
        reference_mask: weight of the distance of the opacity to its silhouette.
        reference_depth: weight of 1 minus the correlation of nearness with ``reference.depth``, inside the silhouette.
        reference_normal: weight of 1 minus the cosine between normals and ``reference.normal``, inside the silhouette.
        start_rgb: weight of the distance to the colours of the views of ``reference.start=samples``.
        start_mask: weight of the distance of the opacity to their silhouettes.
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

    Attributes:
        elevation_deg: elevation of the camera above the horizon, degrees; null estimates it.
        azimuth_deg: azimuth of the camera, degrees from the scene's front.
        distance: distance of the camera from the origin, scene units.
        fov_y_deg: vertical field of view, degrees.
        background: how the object is cut out: ``auto`` by its alpha channel or from a plain background, ``keep`` takes the whole picture,
            ``rembg`` uses the package of that name.
        recentre: move the object to the middle and scale it; false keeps its place in the picture.
        fill: share of the picture's side that the object fills after ``recentre``.
        start: ``samples`` first fits the scene to views that the model draws, without asking the prior; ``none`` does not.
        start_until: fraction of the run up to which it is fitted to them.
        depth: a picture as large as ``image`` of how near things are, bright for near; for ``penalties.reference_depth``.
        normal: a picture as large as ``image`` of the normals in the camera's frame, (n + 1) / 2; for ``penalties.reference_normal``.
        fourth: what the novel-view model takes for the fourth number of a pose: ``distance``, the difference of distances, or
            ``polar``, the camera's polar angle as in Stable-Zero123; ``auto`` is what its folder says, or goes by the folder's name.
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

    Attributes:
        file: the mesh: GLB, OBJ, PLY or STL.
        up: axis of the file that points up; ``auto`` goes by the format.
        front: axis of the file that points to the front; ``auto`` goes by the format.
        keep: names of materials that stay as they are.
        init_texture: begin with the mesh's own texture or colours.
    """

    file: str | None = None
    up: Annotated[str, OneOf(("auto", "+x", "-x", "+y", "-y", "+z", "-z"))] = "auto"
    front: Annotated[str, OneOf(("auto", "+x", "-x", "+y", "-y", "+z", "-z"))] = "auto"
    keep: list[str] = field(default_factory=list)
    init_texture: bool = False


@dataclass
class PriorOptions:
    """Options of loading a prior, see ``distill.load_prior``.

    Attributes:
        image_size: height and width in pixels that pictures are resized to for the prior; null for the size it was trained on.
        dtype: precision of the network and of the VAE; ``auto`` is half precision where the device computes faster in it.
        checkpointing: compute activations of the VAE again on the way back rather than keep them; saves memory, costs time.
        compile: compile the network with ``torch.compile``.
        graphs: launch each prediction as one CUDA graph; null does so on CUDA for networks of up to 1e9 parameters.
        loras: LoRA files, each ``path`` or ``path:weight``.
        controlnet: folder or name of a ControlNet.
        control: what the ControlNet is shown: ``depth``, ``normal`` or ``mask`` of the scene from each camera, or a picture's file.
        control_scale: weight of the ControlNet.
        prompt_weighting: read ``(word)1.2`` and the like in prompts as weights, and take prompts longer than the text encoder's limit.
        vae_sample: encode to a sample of the VAE's distribution rather than its mode.
        config: folder with the settings of a prior in a single file.
        vae: another VAE: a folder, a file or a name.
        prediction_type: what the network predicts, where its scheduler does not say it rightly.
        embeddings: files of textual inversion, each ``path`` or ``token=path``.
        views: how many views a multi-view prior takes together, null for four; with 1, it is one of single pictures.
        ip_mode: how ImageDream is shown its picture: ``pixel``, as a fifth view too, or ``local``, by tokens alone; ``auto`` goes by its name.
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

    Attributes:
        front: whole prompt of the front, instead of the prompt with the view's words.
        side: whole prompt of the sides.
        back: whole prompt of the back.
        overhead: whole prompt from overhead.
        file: YAML file with any of these four.
        front_deg: half of what counts as the front, degrees; so much of the back, too. Of four words alone.
        overhead_deg: elevation from which a camera is overhead, degrees. Of four words alone.
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
    """Perp-Neg: stay away from the views that a camera does not see.

    A curve is a, b, c of a exp(-b r) + c, and perhaps the r above which it is 0, where r goes from 0 to 1 between two views.

    Attributes:
        enabled: use it.
        strength: multiplies all weights.
        curves: whose curves: ``threestudio``'s or the ``authors``' of Perp-Neg.
        front_from_side: the curve of the front's weight between side and front; null for that of ``curves``.
        side_from_front: the curve of the side's weight between side and front; null for that of ``curves``.
        side_from_back: the curve of the side's weight between back and side; null for that of ``curves``.
        front_from_back: the curve of the front's weight between back and side; null for that of ``curves``.
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
    """Shares of the training pictures that are not ``albedo``; together at most 1.

    Attributes:
        lambertian: share of pictures that are lit.
        textureless: share of pictures that are lit and white.
        normals: share of pictures that show normals as colours.
    """

    lambertian: Share = 0.0
    textureless: Share = 0.0
    normals: Share = 0.0


@dataclass
class Rendering:
    """Pictures per step, their size, how surfaces are lit, and what memory it takes.

    Attributes:
        batch: pictures per step.
        size: height and width of the pictures, pixels.
        shading: ``albedo``, ``lambertian`` (lit), ``textureless`` (lit and white), or ``normals`` (as colours).
        turns: shares of the pictures that are shaded otherwise.
        soft_light: a random share of the light comes from everywhere, rather than a tenth.
        at_once: views of the batch that are in memory at a time; their gradients add up; null for all. With a multi-view prior, a
            multiple of its views, and no less.
        chunk_rays: rays that are rendered at a time with ``recompute``.
        recompute: render again on the way back, ``chunk_rays`` rays at a time, rather than keep every sample.
        patch: side of a random window that alone is rendered in full, pixels, amid a picture of ``coarse`` pixels
            resized; null renders all of it.
        coarse: side of the picture around ``patch``, pixels.
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
        betas: decay of the averages of the gradient and of its square.
        eps: added to the root of the average of squares.
        clip_norm: largest norm of the gradient over all parameters; 0 for none.
        final_lr: factor on every learning rate at the end of the run, reached along a cosine; 1 leaves them as they are.
        ema: decay of a moving average of the parameters, which is what is exported; 0 for none.
        max_bad_steps: steps in a row whose gradients are not finite, and which are skipped, after which the run ends.
        weight_decay: decay of the parameters, decoupled from the gradient as in AdamW; times the learning rate, in each step.
        reduction: how the loss is taken over a batch, ``mean`` or ``sum``; penalties are means.
        accumulate: prompts of a library per step, over whose gradients the mean is taken; null is one for each process.
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
    """Output during a run; intervals in steps, 0 for never.

    Attributes:
        preview_every: interval between previews, four sides of the scene.
        checkpoint_every: interval between checkpoints.
        keep_checkpoints: how many of the last checkpoints are kept.
        tensorboard: write the metrics for TensorBoard, too.
    """

    preview_every: Every = 100
    checkpoint_every: Every = 100
    keep_checkpoints: Count = 2
    tensorboard: bool = True


@dataclass
class Export:
    """Export of the finished scene; see ``distill.export.asset.export_asset``.

    Attributes:
        enabled: write mesh, video and contact sheet; with false, the scene stays in its checkpoint.
        resolution: nodes along each edge of the grid in which the surface is looked for.
        faces: largest number of faces of the mesh, to which it is simplified.
        iso: density of the surface, per scene unit; null chooses it.
        largest_component: leave out pieces that are not connected with the largest one.
        texture_size: height and width of the texture, pixels.
        frames: number of frames of the turntable.
        picture_size: height and width of the video and of the contact sheet's pictures, pixels.
        elevation_deg: elevation of the camera in video and contact sheet, degrees.
        up: upward axis of the files.
        formats: formats of the mesh, such as ``glb,usdz``; null for GLB, OBJ and PLY, and for a mesh that is textured GLB alone.
        name: name of the files and of the object in them.
        pivot: where the origin is: as in the ``scene``, the ``centre`` of the bounding box, or on the ``ground`` beneath it.
        size_m: the largest extent in metres; null leaves one scene unit one metre.
        lods: simplified meshes besides the full one, each of half the faces of the one before.
        lod_as: where they go: ``files`` of their own, ``msft`` (into the GLB, as MSFT_lod), or ``both``.
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
    """One run, or with ``prompts`` one run per line of a file.

    Attributes:
        prompt: what to make.
        prompts: file with a prompt in each line, or a library as JSON; each becomes a run.
        shard: ``i/n`` takes every n-th line of ``prompts`` from the i-th.
        negative_prompt: what classifier-free guidance leads away from, instead of the empty prompt; some losses need it.
        source_prompt: what the scene shows before an edit, for losses that edit.
        image: picture to make the scene from, by a novel-view model or an ImageDream.
        novel_view: the novel-view model of ``image``: a folder, or ``embedded``.
        mesh: a mesh to texture.
        view_words: words of the view that are added to the prompt: ``four`` (front, side, back, overhead), ``sixteen`` directions, or
            ``none``; ``auto`` goes by the prior.
        views: whole prompts for views.
        perp_neg: Perp-Neg.
        unconditional: embedding of the empty prompt: ``auto``, what the prior takes for it, or ``null``, zeros.
        iterations: steps of the run.
        guidance_weight: weight of the loss beside the penalties.
        particles: scenes that are optimised jointly, each an asset; every step trains one of them.
        seed: what all random numbers follow from.
        seeds: so many runs from ``seed`` on, in folders below the run's own.
        keep: which of several seeds to keep: ``all`` or the ``best``, whose files become those of the run.
        judge: what scores scenes and chooses the best: ``embedded``, ``things`` or a folder with a CLIP; null is none, or with ``keep=best``
            the one that fits the prior.
        retries: so many further seeds take the place of runs that collapse, diverge or have no surface.
        watchdog: end a run that has collapsed, see ``distill.run.watchdog``.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        prior: the frozen diffusion model: one that ships, a name of ``distill priors``, a folder, or a repository on the Hub. Where it is left
            out, the prompt decides between ``embedded`` and ``things``.
        prior_options: how it is loaded.
        max_vram: GPU memory to stay below, such as ``12GB``; options that save memory are chosen.
        output_dir: folder of the run; null for ``outputs/``, the prompt and a hash of the settings.
        init: folder of an earlier run whose scene to begin with.
        generator: folder of a ``distill amortise`` run, which makes the scene to begin with from the prompt.
        generator_mix: another prompt; the scene is made from what lies between the two.
        generator_share: how far from the prompt to ``generator_mix``.
        stages: runs that begin with one another, such as ``[field,surface]``, see ``distill.run.stages``.
        earlier: made by ``stages``: what differs in the stages before the last.
        resume: go on with an interrupted run.
        view: serve a page that shows the scene while it trains.
        view_address: address that the page is served at.
        view_port: port of the page, 0 for any that is free.
        render: the pictures of a step.
        penalties: what is added to the loss.
        optimiser: how the scene is changed.
        reference: the camera of ``image``.
        log: what is written during the run.
        export: what is written after it.
        guidance: the loss.
        timesteps: the sampler of timesteps.
        cameras: the sampler of cameras.
        scene: the representation of the scene.
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
