"""A prior's folder is looked at before anything of it is loaded: is every file there, whole, and of one model?"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill.convert import pickled
from distill.files.errors import first_line
from distill.priors.draft import PART as DRAFT
from distill.priors.families import Family
from distill.priors.header import AGAIN, shapes_of
from distill.priors.multi_view.attention import COUNT, takes_cameras
from distill.priors.multi_view.published import (
    CAMERA_PART,
    ENCODER,
    IN_FILE,
    MARK,
    PROMPTED,
    RESAMPLER,
    WEIGHT,
    WIDTH,
    build,
    has_cameras_beside,
    names_of,
    settings_of_unet,
)
from distill.priors.quiet import quiet
from distill.priors.source import Source, variant_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: What the names of a UNet's tensors begin with in a single file.
UNET = "model.diffusion_model."


def check_whole(source: Source, family: Family, index: dict[str, Any]) -> None:
    """Check settings and the heads of weights of each part that a prior needs; loads none of them.

    Args:
        source: where it is.
        family: of the prior.
        index: its ``model_index.json``.

    Raises:
        ValueError: a file is missing, cut short, a pointer of Git LFS or pickled, or parts do not go together; in one line
            that names the file and the remedy.
    """
    folder = source.folder
    encoders = [part for part in index if part.startswith("text_encoder") and named(index, part)]
    beside = [part for part in ("vae", DRAFT) if named(index, part)]
    weighty = [family.component, *beside, *encoders]
    settings = {part: settings_of(folder / part / "config.json") for part in weighty}
    settings[family.component] = network_settings(source, family)
    settings_of(folder / "scheduler" / "scheduler_config.json")
    if source.file:
        check_single(source, family, settings)
    beside = [CAMERA_PART] if family.component == "unet" and has_cameras_beside(folder) else []
    if settings[family.component].get(COUNT) and ENCODER not in source.parts:
        settings_of(folder / ENCODER / "config.json")
        beside.append(ENCODER)
    for part in [*weighty, *beside]:
        if (family.component if part == CAMERA_PART else part) not in source.parts:
            check_weights(folder, part)
    for part in index:
        if part.startswith("tokenizer") and named(index, part) and not any((folder / part).glob("*")):
            raise ValueError(
                f"the prior in {folder} has no {part}: {folder / part} is missing or empty; {AGAIN}"
            )
    check_together(folder, family, settings)


def network_settings(source: Source, family: Family) -> dict[str, Any]:
    """Read the settings of a prior's denoiser as diffusers' class takes them; of a multi-view prior with its cameras.

    Those of ImageDream also say how many tokens it is shown of a picture, and similar, see ``distill.priors.multi_view.published``.

    Raises:
        ValueError: they cannot be read, or are of a port of another model than MVDream and ImageDream.
    """
    path = source.folder / family.component / "config.json"
    said = settings_of(path)
    if family.component != "unet":
        return said
    beside = family.component not in source.parts and has_cameras_beside(source.folder)
    found = settings_of_unet(said, str(path), cameras=beside or MARK in source.marks)
    return _with_picture(source, found) if takes_cameras(found) else found


def _with_picture(source: Source, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with what the file, or the image encoder in the folder, says of ImageDream."""
    if "unet" not in source.parts:
        own = source.folder / ENCODER / "config.json"
        if settings.get(COUNT) and own.is_file():
            return {**settings, WIDTH: settings_of(own).get("hidden_size", settings[WIDTH])}
        return settings
    plain = {name: value for name, value in settings.items() if name not in (COUNT, WIDTH, WEIGHT)}
    if PROMPTED not in source.marks:
        return plain
    assert source.file is not None
    shapes, weight = shapes_of(source.file), settings.get(WEIGHT, 1.0)
    try:
        count, width = (shapes[f"{IN_FILE}{RESAMPLER}{name}"][1] for name in ("latents", "proj_in.weight"))
    except (KeyError, IndexError) as error:
        raise ValueError(
            f"{source.file} does not have the weights of ImageDream's {RESAMPLER.rstrip('.')}; {AGAIN}"
        ) from error
    return {**plain, COUNT: count, WIDTH: width, WEIGHT: weight}


def check_single(source: Source, family: Family, settings: dict[str, dict[str, Any]]) -> None:
    """Check that a single file has what its folder of settings has no weights of, and that the two are of one model.

    Raises:
        ValueError: a part is in neither, or the network in the file is another than the settings say.
    """
    assert source.file is not None
    if family.component not in source.parts:
        raise ValueError(
            f"{source.file} has no {family.component} such as the settings in {source.folder} are of; give those of its own "
            "kind with prior_options.config=FOLDER"
        )
    lacking = [
        part
        for part in settings
        if part not in source.parts and not any((source.folder / part).glob("*.safetensors"))
    ]
    if lacking:
        raise ValueError(
            f"{source.file} has no {', '.join(lacking)}; give a folder in the diffusers layout whose weights of "
            f"{'it' if len(lacking) == 1 else 'them'} are taken: prior_options.config=FOLDER"
        )
    shapes, said = shapes_of(source.file), settings[family.component]
    first = shapes.get(f"{UNET}input_blocks.0.0.weight")
    text = [
        shape
        for name, shape in shapes.items()
        if name.startswith(UNET) and name.endswith("attn2.to_k.weight")
    ]
    if family.component != "unet" or first is None:
        return
    if first[1] == 9 != said.get("in_channels", 4):
        raise ValueError(
            f"{source.file} takes 9 channels (it is a model for inpainting); choose a text-to-image model"
        )
    if takes_cameras(said) and MARK not in source.marks:
        raise ValueError(
            f"{source.file} takes no cameras, and the settings in {source.folder / family.component} are of a multi-view model; "
            "give those of its own kind with prior_options.config=FOLDER"
        )
    widths = said.get("block_out_channels", (320,))
    wide = said.get("cross_attention_dim", 1280)
    if first[:2] != (widths[0], said.get("in_channels", 4)) or any(shape[1] != wide for shape in text[:1]):
        raise ValueError(
            f"{source.file} does not fit the settings in {source.folder / family.component}: they are of another model; give "
            "those of its own kind with prior_options.config=FOLDER"
        )


def named(index: dict[str, Any], part: str) -> bool:
    """Tell whether a pipeline has a part; an index may name one as null."""
    kind = index.get(part)
    return bool(kind) and (not isinstance(kind, list) or kind[-1] is not None)


def settings_of(path: Path) -> dict[str, Any]:
    """Read a JSON file that must hold settings.

    Raises:
        ValueError: it is not there, or no such file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"the prior lacks {path}; {AGAIN}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({first_line(error)}); {AGAIN}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold named settings, got {type(found).__name__}; {AGAIN}")
    return found


def check_weights(folder: Path, part: str) -> None:
    """Check that all files of a part's weights are there and whole.

    Raises:
        ValueError: as said.
    """
    files = sorted((folder / part).glob("*.safetensors"))
    listings = sorted((folder / part).glob("*.safetensors.index*.json"))
    for listing in listings:
        shards = set(dict(settings_of(listing).get("weight_map", {})).values())
        there = {file.name for file in files}
        # Of weights in two precisions one may be left out, and with it all of its files.
        if missing := sorted(shards - there) if shards & there or not files else []:
            raise ValueError(f"{folder / part / missing[0]} is missing, and {listing.name} lists it; {AGAIN}")
    listed = {name for listing in listings for name in settings_of(listing).get("weight_map", {}).values()}
    if loose := [
        file
        for file in files
        if re.search(r"-\d+-of-\d+\.safetensors$", file.name) and file.name not in listed
    ]:
        raise ValueError(
            f"{loose[0]} is a part of weights whose index is missing ({loose[0].parent / '*.safetensors.index.json'}); {AGAIN}"
        )
    if not files:
        if pickled(folder):
            return  # said with its remedy where it is loaded
        raise ValueError(f"the prior in {folder} has no weights in {folder / part} (*.safetensors); {AGAIN}")
    for file in files:
        shapes_of(file)


#: How older files call layers of a VAE's attention, which diffusers renames as it loads them.
OLDER = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def check_complete(source: Source, family: Family, index: dict[str, Any]) -> None:
    """Check that no weight of a prior's parts is missing in their files, from the names in the files' heads.

    What loads a prior finds this out as it does; this is for who wants to know before. A single file's own parts, whose
    tensors have other names, are passed over.

    Raises:
        ValueError: a part lacks weights.
    """
    parts = [family.component, "vae", *(part for part in index if part.startswith("text_encoder"))]
    for part in parts:
        kind = index.get(part)
        if part in source.parts or not (named(index, part) and isinstance(kind, list) and len(kind) == 2):
            continue
        own = part == family.component
        said = network_settings(source, family) if own else None
        names = {_plain(name) for name in _names(source.folder, part, said)}
        called: dict[int, set[str]] = {}
        for name, value in _empty(source.folder / part, kind[0], kind[1], said).named_parameters(
            remove_duplicate=False
        ):
            called.setdefault(id(value), set()).add(_plain(name))
        if missing := sorted(min(each) for each in called.values() if not each & names):
            raise ValueError(
                f"{source.folder / part} lacks {len(missing)} of its weights, such as {missing[0]}; {AGAIN}"
            )


def _names(folder: Path, part: str, said: dict[str, Any] | None) -> set[str]:
    """Names of the weights in a part's files, those of a multi-view UNet as diffusers has them."""
    names = {name for file in (folder / part).glob("*.safetensors") for name in shapes_of(file)}
    if part != "unet" or said is None:
        return names
    cameras = (folder / CAMERA_PART).glob("*.safetensors")
    beside = {f"class_embedding.{name}" for file in cameras for name in shapes_of(file)}
    return {*names_of(names, said).values(), *beside} if "layers_per_block" in said else names


def _plain(name: str) -> str:
    """A weight's name without what versions of the libraries differ in."""
    for old, new in OLDER.items():
        name = name.replace(old, new)
    return name.removeprefix("text_model.")


def _empty(folder: Path, library: str, kind: str, said: dict[str, Any] | None) -> torch.nn.Module:
    """A part without weights, on the meta device, with its own settings or those that are given."""
    import diffusers
    import transformers

    with torch.device("meta"), quiet():
        if library == "transformers":
            made = getattr(transformers, kind)
            empty: torch.nn.Module = made(made.config_class.from_pretrained(folder))
        elif said and said.get(COUNT):
            empty = build(said)
        else:
            empty = getattr(diffusers, kind).from_config(said or settings_of(folder / "config.json"))
    return empty


def check_together(folder: Path, family: Family, settings: dict[str, dict[str, Any]]) -> None:
    """Check that a UNet takes what the VAE and the text encoders give.

    Raises:
        ValueError: it does not, such as an inpainting model's, or one of another version's.
    """
    if family.component != "unet":
        return
    network = settings["unet"]
    if draft := settings.get(DRAFT):
        fits = (
            network.get("cross_attention_dim"),
            network["in_channels"] - network["out_channels"],
            network["sample_size"],
        )
        if (draft.get("width"), draft.get("channels"), draft.get("size")) != fits:
            raise ValueError(
                f"{folder / DRAFT} does not fit {folder / 'unet'}, which takes {fits[1]} channels of {fits[2]} pixels made of "
                f"{fits[0]} features; both must be of one training"
            )
    taken, given = network.get("in_channels", 4), settings.get("vae", {}).get("latent_channels", 4)
    if "vae" in settings and taken != given:
        why = " (it is one for inpainting or editing)" if taken > given else ""
        raise ValueError(
            f"{folder / 'unet'} takes {taken} channels{why}, and {folder / 'vae'} gives {given}; choose a text-to-image model "
            "whose parts are its own"
        )
    wide = network.get("encoder_hid_dim") or network.get("cross_attention_dim", 1280)
    widths = [width_of(own) for part, own in settings.items() if part.startswith("text_encoder")]
    told = [width for width in widths if width is not None]
    if isinstance(wide, int) and len(told) == len(widths) and wide != sum(told):
        raise ValueError(
            f"{folder / 'unet'} takes text states of width {wide}, and the text encoders give {sum(told)}; they are of "
            "different models: take all parts from one"
        )


def width_of(settings: dict[str, Any]) -> int | None:
    """Width of a text encoder's states; None where its settings do not say."""
    own = settings.get("text_config") or settings
    found = own.get("hidden_size", own.get("d_model"))
    return found if isinstance(found, int) else None


def load_encoder(folder: Path, part: str, kind: str, dtype: torch.dtype) -> tuple[PreTrainedModel, list[str]]:
    """A text encoder, and the names of the weights that its files lack; transformers draws those at random."""
    import transformers

    major, minor = (int(number) for number in transformers.__version__.split(".")[:2])
    named = "dtype" if (major, minor) >= (4, 56) else "torch_dtype"
    options: dict[str, Any] = {named: dtype}
    with quiet():
        made, info = getattr(transformers, kind).from_pretrained(
            folder,
            subfolder=part,
            variant=variant_of(folder / part),
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    return made, sorted(info["missing_keys"])
