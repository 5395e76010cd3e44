"""Finding a prior's folder and loading it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from distill.convert import pickled
from distill.devices import pick_device
from distill.files.errors import first_line
from distill.priors import inversion, lora
from distill.priors.autoencoder import find_vae
from distill.priors.choices import IP_MODES
from distill.priors.control import ControlNet, load_controlnet
from distill.priors.diffusion import DiffusionPrior
from distill.priors.draft import PART, Draft, channels_of, show
from distill.priors.dtypes import default_dtype, dtype_of, keep_last, precision
from distill.priors.encoders import check_filled, from_file, loader_of
from distill.priors.families import FAMILIES, Family, weighted
from distill.priors.families.unet import PLAIN
from distill.priors.graphs import check_graphs, graphs_for
from distill.priors.inversion import Words
from distill.priors.multi_view.attention import COUNT, takes_cameras, views_of
from distill.priors.multi_view.image_prompt import arrange, is_pixel, load_image_prompt
from distill.priors.multi_view.published import CAMERA_PART, MARK, files_of, load_unet
from distill.priors.schedule import check_prediction, read_schedule
from distill.priors.source import Source, find, variant_of
from distill.priors.space import Space, downsampling
from distill.priors.text import TextEncoders, identity_of
from distill.priors.whole import check_whole, named, network_settings, settings_of

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DiffusionPipeline, ModelMixin
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

log = logging.getLogger(__name__)


def family_of(folder: Path) -> tuple[Family, dict[str, Any]]:
    """Return the family of a folder's pipeline, and its index.

    Raises:
        ValueError: the kind is unknown, or parts of it are missing.
    """
    index = settings_of(folder / "model_index.json")
    name = index.get("_class_name", "DiffusionPipeline")
    if not isinstance(name, str) or name not in FAMILIES:
        known = ", ".join(
            known.removesuffix("Pipeline") for known in FAMILIES if known != "DiffusionPipeline"
        )
        raise ValueError(f"the prior in {folder} is a {name}; known kinds are {known}")
    family = FAMILIES[name]
    missing = [
        part for part in (family.component, "scheduler", "tokenizer", "text_encoder") if part not in index
    ]
    if missing:
        raise ValueError(
            f"a prior of this kind needs {family.component}, scheduler, tokenizer and text_encoder, but {folder} lacks "
            f"{', '.join(missing)}"
        )
    if name == MVDREAM:
        # A port's pipeline and its own UNet are none of diffusers', which has all that they consist of.
        index = {key: value for key, value in index.items() if key != CAMERA_PART}
        index |= {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", family.network]}
    return family, index


#: What a folder of either port says that its pipeline is.
MVDREAM = "MVDreamPipeline"


def load_prior(
    name: str | Path = "embedded",
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    image_size: int | None = None,
    *,
    checkpointing: bool = False,
    compile: bool = False,
    graphs: bool | None = None,
    loras: Sequence[str | Path] = (),
    controlnet: str | Path | None = None,
    control_scale: float = 1.0,
    prompt_weighting: bool = False,
    vae_sample: bool = False,
    config: str | Path | None = None,
    vae: str | Path | None = None,
    prediction_type: str | None = None,
    embeddings: Sequence[str | Path] = (),
    views: int | None = None,
    ip_mode: str = "auto",
) -> DiffusionPrior:
    """Load a frozen prior.

    Args:
        name: a bundled one (``embedded``, ``things``, ``views``), a local folder in the diffusers layout or a single file, a name
            that ``distill priors`` lists, or ``owner/repository@revision`` on the hub; safetensors only.
        device: where it runs.
        dtype: what its network computes in, except for its last layers, which compute in float32, or its name; by default what the
            device is fast at and its family is published in.
        image_size: height and width in pixels that it is shown; by default what it was trained on.
        checkpointing: the VAE computes its activations again in the backward pass, for less memory and more time.
        compile: compile the network with ``torch.compile``; slow to start.
        graphs: launch each prediction as one CUDA graph, see ``distill.priors.graphs``; None for networks of up to 1e9
            parameters on CUDA that are not compiled.
        loras: safetensors files whose low-rank updates are added to its weights and its text encoders', each
            ``path`` or ``path:weight``.
        controlnet: a ControlNet beside its network, a folder in the diffusers layout or ``owner/repository@revision``
            on the hub; embeddings then need the picture, under ``control``, see ``distill.conditions.control``.
        control_scale: what the ControlNet adds to the network's features is multiplied by this.
        prompt_weighting: prompts may have weights and be of any length, see ``distill.priors.families.weighted``.
        vae_sample: pictures are encoded to a sample of the VAE's distribution, as other libraries do, instead of its mode.
        config: a folder in the diffusers layout with the settings of a prior in a single file; by default those of the
            published model of its kind.
        vae: another VAE, see ``distill.priors.autoencoder``.
        prediction_type: what the network predicts, ``epsilon``, ``v_prediction`` or ``sample``, where its scheduler does not
            say it rightly.
        embeddings: textual-inversion embeddings, safetensors files whose tokens prompts may have, each ``path`` or
            ``token=path``; the token is the file's name where it is not said.
        views: of one object that a multi-view prior takes together, four by default; with 1, it is one of single pictures
            and told no cameras.
        ip_mode: of ImageDream, ``pixel`` for the model that takes its picture as a fifth view, ``local`` for the one that does not,
            ``auto`` by its name.

    Raises:
        ValueError: there is no such prior or dtype, its folder is not one this library can use, a LoRA or the ControlNet does
            not fit it, graphs are asked for on another device than CUDA, several views of a prior that is given no cameras, or
            ``ip_mode`` is given for a prior that is shown no picture.
    """
    device = pick_device(str(device))
    check_graphs(graphs, device)
    files = _lora_files(loras)
    inversions = [inversion.parse(entry) for entry in _listed("embeddings", embeddings)]
    asked = dtype_of(dtype)
    source = find(name, config)
    family, index = family_of(source.folder)
    dtype, of_vae = asked or default_dtype(device, family.half), asked or default_dtype(device)
    check_whole(source, family, index)
    settings = network_settings(source, family)
    together = views_of(settings, views, source.name, controlnet=bool(controlnet))
    pixel = mode_of(ip_mode, source, settings)
    scheduler = _scheduler(source, index, prediction_type)
    own_vae = find_vae(vae, source, index) if vae else None
    inversion.check(inversions, source, family, index)
    weighting = weighting_of(family) if prompt_weighting else []
    network, autoencoder = _parts(source, family, index, (dtype, of_vae), own_vae)
    _freeze(network, autoencoder, device, checkpointing)
    if takes_cameras(settings):
        arrange(network, settings, together, pixel=pixel)
    if named(index, PART):
        show(network, Draft.read(source.folder / PART).to(device))
    told = _add_loras(files, network, family, index)
    keep_last(network, family.last)
    if family.channels_last:
        network.to(memory_format=torch.channels_last)
    control = _control(controlnet, control_scale, family, network, autoencoder, dtype) if controlnet else None
    if compile:
        network.compile()
    space, patches = space_of(autoencoder, network, family, image_size)
    space = replace(space, sampled=vae_sample)
    schedule = read_schedule(scheduler, patches).to(device)
    text = _text(source, family, index, device, dtype, told, inversions, weighting)
    recorded = graphs_for(network, device, graphs, compiled=compile)
    picture = load_image_prompt(source, settings, device, dtype, pixel=pixel) if settings.get(COUNT) else None
    return DiffusionPrior(
        network, space, text, family, schedule, device, dtype, source, tuple(files), control, recorded, own_vae,
        tuple(inversions), together, picture,
    )  # fmt: skip


def mode_of(ip_mode: str, source: Source, settings: dict[str, Any]) -> bool:
    """Tell whether a network takes its picture as a view; settings as for ``network_settings``.

    Raises:
        ValueError: the mode is unknown, or given for a network that is shown no picture.
    """
    if ip_mode not in IP_MODES:
        raise ValueError(f"prior_options.ip_mode must be one of {', '.join(IP_MODES)}, got {ip_mode!r}")
    if settings.get(COUNT):
        return is_pixel(ip_mode, source)
    if ip_mode != "auto":
        raise ValueError(
            f"prior_options.ip_mode={ip_mode} is for ImageDream, which is shown a picture, and {source.name} is not; leave it out"
        )
    return False


def is_imagedream(source: Source) -> bool:
    """Tell whether a prior is ImageDream, from its settings or its file's head.

    Raises:
        ValueError: its settings cannot be read.
    """
    family, _ = family_of(source.folder)
    return bool(network_settings(source, family).get(COUNT))


def _control(
    name: str | Path, scale: float, family: Family, network: ModelMixin, vae: AutoencoderKL | None, dtype: torch.dtype
) -> ControlNet:  # fmt: skip
    """Load a ControlNet beside a network, on its device."""
    factor = downsampling(vae, channels_of(network))
    found = load_controlnet(name, scale, family, network, factor, **precision(dtype))
    found.network.to(network.device)
    return found


def _lora_files(entries: Sequence[str | Path]) -> list[lora.Lora]:
    """LoRA files that are there and whole, with their weights."""
    files = [lora.parse(entry) for entry in _listed("loras", entries)]
    for file in files:
        lora.check(file)
    return files


def _listed(option: str, given: Sequence[str | Path]) -> Sequence[str | Path]:
    """Refuse one path where a list of them is due: it would be read letter by letter."""
    if isinstance(given, (str, Path)):
        raise ValueError(f"{option} is a list of files, got {str(given)!r}; write {option}=[{str(given)!r}]")
    return given


def _add_loras(
    files: Sequence[lora.Lora], network: ModelMixin, family: Family, index: dict[str, Any]
) -> list[lora.Update]:
    """Add LoRA files to a network's weights; returns what they have for the text encoders."""
    updates = [lora.read(file, loader(family, index), family.component, network.config) for file in files]
    for update in updates:
        lora.put_on(network, family.component, update)
    return [update.without(family.component) for update in updates if update.parts() != {family.component}]


def _text(
    source: Source,
    family: Family,
    index: dict[str, Any],
    device: torch.device,
    dtype: torch.dtype,
    updates: Sequence[lora.Update],
    inversions: Sequence[inversion.Inversion],
    weighting: Sequence[str],
) -> TextEncoders:
    """The prior's text side, which loads its encoders when a prompt is new; ``weighting`` is what weighs prompts, if anything."""
    own = family is PLAIN
    dtype = torch.float32 if own or device.type == "cpu" else dtype
    load = loader_of(source, index, device, dtype, updates, inversions, plain=own)
    changes = [f"{update.lora.sha256} {update.lora.weight} by layer" for update in updates]
    changes += [f"{each.sha256} {each.token} embedding" for each in inversions]
    # PixArt-alpha and -sigma have one encoder, and pad its states to different lengths.
    kind = str(index.get("_class_name", ""))
    changes += (
        [f"empty {index['force_zeros_for_empty_prompt']}"] if "force_zeros_for_empty_prompt" in index else []
    )
    return TextEncoders(
        load,
        family.weighted if weighting and family.weighted else family.embed,
        None if own else identity_of(source, kind, str(dtype), *changes, *weighting),
        bool(weighting),
        {} if weighting else family.lengths,
        Words(inversions),
    )


def weighting_of(family: Family) -> list[str]:
    """Return what weights a family's prompts, with its version: a part of cached embeddings' identity.

    Raises:
        ValueError: the family's prompts cannot be weighted, or compel is not installed.
    """
    found = [f"compel {weighted.version()}"]
    if family.weighted is None:
        known = ", ".join(sorted(kind for kind, each in FAMILIES.items() if each.weighted))
        raise ValueError(
            f"prior_options.prompt_weighting works with {known}, and not with a {family.network} of another kind"
        )
    return found


def _scheduler(source: Source, index: dict[str, Any], prediction_type: str | None) -> SchedulerMixin:
    """The prior's scheduler; one line tells of a single file whose settings make it a model of v.

    Raises:
        ValueError: it cannot be read, or is none for ``prediction_type``.
    """
    try:
        found = read_scheduler(source, index, prediction_type)
    except (OSError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _unreadable(source, error) from error
    told = prediction_type or source.marks
    if source.file and not told and found.config.get("prediction_type") == "v_prediction":
        log.info(
            "%s is treated as a model that predicts v, as in the settings of %s; set prior_options.prediction_type=epsilon if it is not",
            source.file,
            source.settings,
        )
    return found


def _parts(
    source: Source,
    family: Family,
    index: dict[str, Any],
    dtypes: tuple[torch.dtype, torch.dtype],
    vae: Source | None,
) -> tuple[ModelMixin, AutoencoderKL | None]:
    """Load the network, and its VAE, or another one, if it has one, in one precision each.

    Raises:
        ValueError: the weights are pickled, or cannot be read.
    """
    autoencoder = None
    try:
        if vae is not None:
            kind, upcast = index["vae"][1], _vae_dtype(vae.folder, dtypes[1])
            autoencoder = _component(vae, "", kind, upcast)
    except _FAILURES as error:
        raise ValueError(
            f"could not load the VAE in {vae.file or vae.folder}: {first_line(error)}"  # type: ignore[union-attr]
        ) from error
    try:
        if "vae" in index and autoencoder is None:
            autoencoder = _component(
                source, "vae", index["vae"][1], _vae_dtype(source.folder / "vae", dtypes[1])
            )
        return _network(source, family, dtypes[0]), autoencoder
    except _FAILURES as error:
        raise _unreadable(source, error) from error


def _freeze(
    network: ModelMixin, vae: AutoencoderKL | None, device: torch.device, checkpointing: bool
) -> None:
    """Move a network and its VAE to a device, their parameters without gradient; the VAE may compute activations again."""
    network.to(device).eval().requires_grad_(False)
    if vae is not None:
        vae.to(device).eval().requires_grad_(False)
        if checkpointing:
            checkpoint(vae)


#: What diffusers fails with at a file that it cannot read.
_FAILURES = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError)


def _unreadable(source: Source, error: Exception) -> ValueError:
    """What to say of a prior that diffusers cannot read."""
    folder = source.folder
    if old := [] if source.file else pickled(folder):
        return ValueError(
            f"the prior in {folder} has pickled weights ({old[0].relative_to(folder)}), and only safetensors are read; "
            f"convert them: python -m distill.convert {folder}"
        )
    layout = "under its authors' names" if source.file else "in the diffusers layout"
    return ValueError(
        f"could not load the prior in {source.file or folder} (safetensors {layout}): {first_line(error)}"
    )


def checkpoint(vae: AutoencoderKL) -> None:
    """Let a VAE compute its activations again in the backward pass.

    Raises:
        ValueError: its class in diffusers cannot.
    """
    if not vae._supports_gradient_checkpointing:
        raise ValueError(
            f"prior_options.checkpointing: this prior's VAE, {type(vae).__name__}, cannot compute its activations again; "
            "leave it out"
        )
    vae.enable_gradient_checkpointing()


def space_of(
    vae: AutoencoderKL | None, network: ModelMixin, family: Family, image_size: int | None
) -> tuple[Space, int]:
    """The space that a network works in, and the number of patches that it makes of a picture.

    Args:
        vae: of diffusers, or None.
        network: of diffusers.
        image_size: height and width in pixels; None for what the network was trained on.

    Raises:
        ValueError: ``image_size`` does not fit the network.
    """
    factor = downsampling(vae, channels_of(network))
    size = image_size or int(network.config.get("sample_size") or 128) * factor
    folded = factor * family.patch
    if size % folded:
        raise ValueError(f"image_size must be a multiple of {folded} for this prior, got {size}")
    return Space.of(vae, channels_of(network), size), (size // folded) ** 2


def _network(source: Source, family: Family, dtype: torch.dtype) -> ModelMixin:
    """The denoiser, a published multi-view one as diffusers' class."""
    own = MARK in source.marks
    files = files_of(source.folder, source.file if own else None) if own or not source.file else {}
    if files:
        return load_unet(files, network_settings(source, family), dtype)
    return _component(source, family.component, family.network, dtype)


def _component(source: Source, part: str, kind: str, dtype: torch.dtype) -> ModelMixin:
    """A part of a pipeline, or with an empty name what a source is as a whole."""
    import diffusers

    made: ModelMixin
    options: dict[str, Any] = {"subfolder": part or None, "local_files_only": True, **precision(dtype)}
    loads = getattr(diffusers, kind)
    where = source.folder / part
    if (part or where.name) in source.parts:
        made, where = from_file(loads, source, part or where.name, **options), source.file or where
    else:
        made = loads.from_pretrained(
            source.folder, variant=variant_of(where), use_safetensors=True, **options
        )
    check_filled(made, str(where))
    return made


def _vae_dtype(folder: Path, dtype: torch.dtype) -> torch.dtype:
    """Some VAEs overflow in float16, and say so."""
    config = settings_of(folder / "config.json")
    return torch.float32 if dtype == torch.float16 and config.get("force_upcast") else dtype


def read_scheduler(
    source: Source, index: dict[str, Any], prediction_type: str | None = None
) -> SchedulerMixin:
    """The scheduler that a folder names, with what a single file or the user says of the prediction instead.

    Raises:
        ValueError: ``prediction_type`` is none for it.
    """
    import diffusers

    kind = index["scheduler"]
    loads = getattr(diffusers, kind[1] if isinstance(kind, list) else kind)
    changes: dict[str, Any] = {"prediction_type": "v_prediction"} if "v_pred" in source.marks else {}
    if "ztsnr" in source.marks:
        changes["rescale_betas_zero_snr"] = True
    if prediction_type is not None:
        plain = loads.from_pretrained(source.folder, subfolder="scheduler", local_files_only=True)
        check_prediction(plain, prediction_type)
        changes["prediction_type"] = prediction_type
    return loads.from_pretrained(source.folder, subfolder="scheduler", local_files_only=True, **changes)


def loader(family: Family, index: dict[str, Any]) -> type[DiffusionPipeline]:
    """The class of diffusers that reads LoRA files for a prior."""
    import diffusers

    return getattr(diffusers, "StableDiffusionPipeline" if family is PLAIN else index["_class_name"])
