"""All options of a run, with their defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from distill.conditions.choices import BACKGROUNDS, CURVES
from distill.domains import Angle, Count, Fraction, Length, NotNegative, OneOf, Positive, Range, Scheduled
from distill.export.choices import (
    BLUR_WIDTH,
    ELEVATION_DEG,
    FACES,
    FINEST_GRID,
    FORMATS,
    FRAMES,
    LARGEST_TEXTURE,
    LOD_PLACES,
    MIN_COMPONENT,
    MOST_LODS,
    PICTURE_SIZE,
    PIVOTS,
    RESOLUTION,
    SIZES,
    TEXTURE_SIZE,
)
from distill.priors.choices import FOURTH, IP_MODES
from distill.renderers.choices import SHADINGS
from distill.viewing import DISTANCE, FOV_Y_DEG

#: The parts of a run that plug in: each is a callable with options.
PARTS = ("guidance", "timesteps", "cameras", "scene")

#: A number or a schedule, at least 0.
Weight = Annotated[Any, Scheduled(), Range(0)]
#: A number or a schedule, in [0, 1].
Share = Annotated[Any, Scheduled(), Range(0, 1)]
#: An interval in steps; 0 is never.
Every = Annotated[int, Range(0)]
#: a, b, c of a exp(-b r) + c, and optionally the r above which it is 0.
Curve = Annotated[list[float] | None, Length(3, 4)]


@dataclass
class Penalties:
    """Weights of the scene's regularisers and of the distances to an input picture.

    A penalty with weight 0 is not computed. Most regularisers are means over the rays of a step's pictures; the distances of colours and
    opacities are mean squared errors.

    Attributes:
        sparsity: weight of sqrt(o^2 + 0.01), where o is a ray's opacity: keeps empty space empty.
        opaqueness: weight of the binary entropy of a ray's opacity: makes rays either hit or miss.
        orientation: weight of normals of visible points that face away from the camera, squared.
        smoothness: weight of differences between the normals of neighbouring visible points, squared.
        z_variance: weight of the variance of the depth along rays with an opacity above one half: makes surfaces thin.
        convexity: weight of concavity, from neighbouring normals; the penalty is negative where the object is convex.
        eikonal: weight of (norm of grad d - 1)^2 for ``scene=sdf``: keeps d a distance.
        curvature: weight of the absolute Laplacian of the distance, for ``scene=sdf``.
        reference_rgb: weight of the distance to the colours of ``image``, from its camera.
        reference_mask: weight of the distance of the opacity to the silhouette of ``image``.
        reference_depth: weight of 1 minus the correlation of nearness with ``reference.depth``, inside the silhouette.
        reference_normal: weight of 1 minus the cosine between normals and ``reference.normal``, inside the silhouette.
        reference_palette: weight of the squared sliced Wasserstein distance between the colours of ``image`` and those of a step's pictures
            with ``albedo`` shading, wherever on the object they are; with ``render.at_once``, of each part of them.
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
    reference_palette: Weight = 0.0

    start_rgb: Weight = 0.0
    start_mask: Weight = 0.0


@dataclass
class Reference:
    """Camera of the input picture ``image``, and how its object is cut out; see ``distill.conditions.cutout``.

    Attributes:
        elevation_deg: elevation of the camera above the horizon, degrees; null estimates it.
        azimuth_deg: azimuth of the camera, degrees from the scene's front; null estimates it, between -90 and 90, through a text prior
            that is told sixteen directions.
        colour: ``auto`` adds a colour to the prompt, if it says none and the prior explains the picture better with one; for the bundled
            priors, of objects whose colour can be chosen.
        backdrop: ``auto`` trains over ``scene.background=grey`` instead of ``white``, if a fifth of the object or more is nearly white;
            over white, such parts may be left empty. For runs that do not ask the novel-view model, which knows objects over white.
        distance: distance of the camera from the origin, scene units.
        fov_y_deg: vertical field of view, degrees.
        background: how the object is cut out: ``auto`` uses the alpha channel or removes a plain background, ``keep`` takes the whole picture,
            ``rembg`` uses the package of that name.
        recentre: centre and scale the object; false keeps its position in the picture.
        fill: fraction of the picture's side that the object fills after ``recentre``.
        start: ``samples`` first fits the scene to views that the model draws, without evaluating the prior; ``none`` does not.
        start_until: fraction of the run up to which the scene is fitted to these views.
        depth: a depth map of the size of ``image``, bright for near; for ``penalties.reference_depth``.
        normal: a normal map of the size of ``image``, (n + 1) / 2 in the camera's frame; for ``penalties.reference_normal``.
        fourth: the fourth number of the novel-view model's pose input: ``distance``, the difference of distances, or
            ``polar``, the camera's polar angle as in Stable-Zero123; ``auto`` reads it from the model's folder, or from the folder's name.
    """

    elevation_deg: Annotated[float | None, Range(-90, 90)] = None
    azimuth_deg: float | None = 0.0
    colour: Annotated[str | None, OneOf(("auto",))] = None
    backdrop: Annotated[str | None, OneOf(("auto",))] = None
    distance: Annotated[float, Range(1, 100)] = DISTANCE
    fov_y_deg: Annotated[float, Range(1, 150)] = FOV_Y_DEG
    background: Annotated[str, OneOf(BACKGROUNDS)] = "auto"
    recentre: bool = True
    fill: Annotated[float, Range(0.1, 1)] = 0.75
    start: Annotated[str, OneOf(("samples", "none"))] = "none"
    start_until: Fraction = 0.3
    depth: str | None = None
    normal: str | None = None
    fourth: Annotated[str, OneOf(("auto", *FOURTH))] = "auto"


@dataclass
class MeshFile:
    """A mesh to texture, see ``distill.meshes``; ``mesh=FILE`` is short for ``mesh.file=FILE`` and implies ``scene=surface``.

    Attributes:
        file: the mesh: GLB, OBJ, PLY or STL.
        up: axis of the file that points up; ``auto`` depends on the format.
        front: axis of the file that points to the front; ``auto`` depends on the format.
        keep: names of materials that stay unchanged.
        init_texture: start from the mesh's own texture or colours.
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
        image_size: height and width in pixels to which pictures are resized for the prior; null for the size it was trained on.
        dtype: precision of the network and of the VAE; ``auto`` is half precision where the device computes faster in it.
        checkpointing: activation checkpointing of the VAE: recompute activations in the backward pass; saves memory, costs time.
        compile: compile the network with ``torch.compile``.
        graphs: launch each prediction as one CUDA graph; null does so on CUDA for networks of up to 1e9 parameters.
        loras: LoRA files, each ``path`` or ``path:weight``.
        controlnet: folder or name of a ControlNet.
        control: the ControlNet's input: ``depth``, ``normal`` or ``mask`` of the scene from each camera, or a picture's file.
        control_scale: weight of the ControlNet.
        prompt_weighting: read notation such as ``(word)1.2`` in prompts as weights, and accept prompts longer than the text encoder's limit.
        vae_sample: encode to a sample of the VAE's distribution rather than its mode.
        config: folder with the settings of a prior in a single file.
        vae: another VAE: a folder, a file or a name.
        prediction_type: what the network predicts, if its scheduler does not record it correctly.
        embeddings: textual-inversion files, each ``path`` or ``token=path``.
        views: number of views that a multi-view prior takes together, null for four; with 1, it takes single pictures.
        ip_mode: how ImageDream receives its picture: ``pixel``, also as a fifth view, or ``local``, as tokens only; ``auto`` depends on its name.
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
    ip_mode: Annotated[str, OneOf(IP_MODES)] = "auto"


@dataclass
class Views:
    """View-dependent prompts, see ``distill.conditions.prompts``.

    Attributes:
        front: complete prompt for the front, instead of the prompt with view words.
        side: complete prompt for the sides.
        back: complete prompt for the back.
        overhead: complete prompt for views from overhead.
        file: YAML file with any of these four.
        front_deg: half width of the front view and of the back view, degrees; only for ``view_words=four``.
        overhead_deg: elevation from which a camera is overhead, degrees; only for ``view_words=four``.
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
    """Perp-Neg: use the prompts of the other views as negative prompts.

    A curve is a, b, c of a exp(-b r) + c, and optionally the r above which it is 0, where r goes from 0 to 1 between two views.

    Attributes:
        enabled: use Perp-Neg.
        strength: factor on all weights.
        curves: default curves: those of ``threestudio`` or of Perp-Neg's ``authors``.
        front_from_side: the curve of the front's weight between side and front; null for that of ``curves``.
        side_from_front: the curve of the side's weight between side and front; null for that of ``curves``.
        side_from_back: the curve of the side's weight between back and side; null for that of ``curves``.
        front_from_back: the curve of the front's weight between back and side; null for that of ``curves``.
    """

    enabled: bool = False
    strength: NotNegative = 1.0
    curves: Annotated[str, OneOf(CURVES)] = "threestudio"
    front_from_side: Curve = None
    side_from_front: Curve = None
    side_from_back: Curve = None
    front_from_back: Curve = None


@dataclass
class Turns:
    """Fractions of the training pictures that are not ``albedo``; together at most 1.

    Attributes:
        lambertian: fraction of pictures that are lit.
        textureless: fraction of pictures that are lit and white.
        normals: fraction of pictures that show normals as colours.
    """

    lambertian: Share = 0.0
    textureless: Share = 0.0
    normals: Share = 0.0


@dataclass
class Rendering:
    """Pictures per step, their size and shading, and the memory of rendering.

    Attributes:
        batch: pictures per step.
        size: height and width of the pictures, pixels.
        shading: ``albedo``, ``lambertian`` (lit), ``textureless`` (lit and white), or ``normals`` (as colours).
        turns: fractions of the pictures with another shading.
        soft_light: make a random share of the light ambient, instead of a tenth.
        at_once: views of the batch that are in memory at a time, with accumulated gradients; null for all. With a multi-view prior, a
            multiple of its views.
        chunk_rays: number of rays rendered at a time with ``recompute``.
        recompute: render again in the backward pass, ``chunk_rays`` rays at a time, instead of storing all samples.
        patch: side of a random window that is rendered at full resolution, pixels, within a picture of ``coarse`` pixels
            that is resized; null renders the whole picture.
        coarse: side of the picture around ``patch``, pixels.
        latent_until: fraction of the run during which normals and opacity replace the prior's latent.
    """

    batch: Count = 4
    size: Annotated[Any, Scheduled(), Range(8)] = 64
    shading: Annotated[str, OneOf(SHADINGS)] = "albedo"
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
    """Adam and its step; the learning rates are options of the scene.

    Attributes:
        betas: decay rates of the moving averages of the gradient and of its square.
        eps: added to the root of the average of squares.
        clip_norm: largest norm of the gradient over all parameters; 0 for none.
        final_lr: factor on every learning rate at the end of the run, reached along a cosine; 1 keeps them constant.
        ema: decay of a moving average of the parameters, which is then exported; 0 for none.
        max_bad_steps: number of consecutive steps with non-finite gradients, which are skipped, after which the run ends.
        weight_decay: decoupled weight decay as in AdamW, multiplied by the learning rate in each step.
        reduction: reduction of the loss over a batch, ``mean`` or ``sum``; penalties are means.
        accumulate: prompts of a library per step, whose gradients are averaged; null for one per process.
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
        keep_checkpoints: number of most recent checkpoints to keep.
        tensorboard: also write the metrics for TensorBoard.
    """

    preview_every: Every = 100
    checkpoint_every: Every = 100
    keep_checkpoints: Count = 2
    tensorboard: bool = True


@dataclass
class Export:
    """Export of the finished scene; see ``distill.export.asset.export_asset``.

    Attributes:
        enabled: write mesh, video and contact sheets; with false, only the checkpoint holds the scene.
        resolution: nodes along each edge of the marching-cubes grid.
        faces: number of faces to which the mesh is simplified; one with many holes through it keeps more.
        iso: density at the surface, per scene unit; null selects it automatically.
        min_component: volume of the smallest connected component that is kept, as a fraction of the largest one's; 1 keeps only the largest, 0
            everything.
        blur_width: standard deviation of the Gaussian that smooths the field before the mesh is made, scene units. It closes pits and tunnels of
            a distilled field. Parts that are thinner than about twice this width may be lost; 0 keeps them.
        texture_size: height and width of the texture, pixels; viewers and engines take 16384 at most.
        frames: number of frames of the turntable.
        picture_size: height and width of the video and of the contact sheets' pictures, pixels; those of the mesh have 512 at most.
        elevation_deg: elevation of the camera in video and contact sheets, degrees.
        up: up axis of the files.
        formats: formats of the mesh, such as ``glb,usdz``; null for GLB, OBJ and PLY, and for a textured mesh GLB only.
        name: name of the files and of the object in them.
        pivot: the origin: that of the ``scene``, the ``centre`` of the bounding box, or the centre of its bottom face, ``ground``.
        size_m: the largest extent in metres; null makes one scene unit one metre.
        lods: number of simplified meshes in addition to the full one, each with half the faces of the previous one.
        lod_as: where levels of detail are written: separate ``files``, ``msft`` (in the GLB, as MSFT_lod), or ``both``.
    """

    enabled: bool = True
    resolution: Annotated[int, Range(8, FINEST_GRID)] = RESOLUTION
    faces: Annotated[int, Range(4)] = FACES
    iso: Positive | None = None
    min_component: Annotated[float, Range(0, 1)] = MIN_COMPONENT
    blur_width: NotNegative = BLUR_WIDTH
    texture_size: Annotated[int, Range(64, LARGEST_TEXTURE)] = TEXTURE_SIZE
    frames: Count = FRAMES
    picture_size: Annotated[int, Range(16, multiple=16)] = PICTURE_SIZE
    elevation_deg: Annotated[float, Range(-89, 89)] = ELEVATION_DEG
    up: Annotated[str, OneOf(("y", "z"))] = "y"
    formats: Annotated[list[str] | None, Length(1, None), OneOf(FORMATS)] = None
    name: str = "mesh"
    pivot: Annotated[str, OneOf(PIVOTS)] = "scene"
    size_m: Annotated[float | None, Range(*SIZES)] = None
    lods: Annotated[int, Range(0, MOST_LODS)] = 0
    lod_as: Annotated[str, OneOf(LOD_PLACES)] = "files"


@dataclass
class Config:
    """One run or, with ``prompts``, one run per line of a file.

    Attributes:
        prompt: what to make.
        prompts: file with one prompt per line, or a library as JSON; each prompt becomes a run.
        shard: ``i/n`` selects every n-th line of ``prompts`` from the i-th.
        negative_prompt: prompt that replaces the empty one in classifier-free guidance; some losses need it.
        source_prompt: description of the scene before an edit, for editing losses.
        image: picture to make the scene from, with a novel-view model or ImageDream.
        novel_view: the novel-view model of ``image``: a folder, or ``embedded``.
        mesh: a mesh to texture.
        view_words: view words added to the prompt: ``four`` (front, side, back, overhead), ``sixteen`` directions, or
            ``none``; ``auto`` depends on the prior.
        views: complete prompts for views.
        perp_neg: Perp-Neg.
        unconditional: embedding of the empty prompt: ``auto``, the prior's own, or ``null``, zeros.
        iterations: number of steps.
        guidance_weight: weight of the loss relative to the penalties.
        particles: number of scenes optimised jointly, each an asset; every step trains one of them.
        seed: seed of all random numbers.
        seeds: number of runs, with consecutive seeds from ``seed``, in subfolders of the run's folder.
        keep: which of several seeds to keep: ``all``, or ``best``, whose files become those of the run.
        judge: model that scores scenes and chooses the best: ``embedded``, ``things`` or a folder with a CLIP; null for none, or with
            ``keep=best`` for the one that fits the prior.
        retries: number of further seeds that replace runs that collapse, diverge or have no surface.
        watchdog: stop a run that has collapsed, see ``distill.run.watchdog``.
        device: ``auto`` (CUDA if available), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        prior: the frozen diffusion model: a bundled one, a name listed by ``distill priors``, a folder, or a repository on the Hub. If not
            given, the prompt selects ``embedded`` or ``things``.
        prior_options: options of loading the prior.
        max_vram: limit on GPU memory, such as ``12GB``, for which memory-saving options are selected.
        output_dir: folder of the run; null for ``outputs/`` with the prompt and a hash.
        init: folder of an earlier run whose scene is the initial scene.
        generator: folder of a ``distill amortise`` run, which makes the initial scene from the prompt.
        generator_mix: second prompt to interpolate to.
        generator_share: position between the prompt (0) and ``generator_mix`` (1).
        stages: consecutive runs that start from one another, such as ``[field,surface]``, see ``distill.run.several.stages``.
        earlier: set by ``stages``: the differing options of the stages before the last.
        resume: continue an interrupted run.
        view: serve a web page that shows the scene while it trains.
        view_address: address of the page.
        view_port: port of the page; 0 for any free port.
        render: the pictures of a step.
        penalties: penalties added to the loss.
        optimiser: the scene's optimiser.
        reference: the camera and cut-out of ``image``.
        log: output during the run.
        export: output after the run.
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
