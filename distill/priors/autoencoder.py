"""Another VAE than the prior's own: a folder, a single file, or one on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.files.paths import user_path
from distill.priors.header import shapes_of
from distill.priors.source import INDEX, Source, is_single, licence_of, of_hub
from distill.priors.whole import check_weights, settings_of

#: Settings that a VAE must have in common with the prior's own, and what they say.
SHARED = {"latent_channels": "latent channels"}
#: What the names in a single file may begin with, and the layer behind that tells the channels of its latents.
PREFIXES, LAYER = ("", "first_stage_model.", "vae."), "decoder.conv_in.weight"


def find_vae(name: str | Path, prior: Source, index: dict[str, Any]) -> Source:
    """Find a VAE for a prior; nothing of it is loaded.

    Args:
        name: a folder in the diffusers layout, of a VAE or of a model that has one; a ``.safetensors`` file, whose settings
            are those of the prior's own; or ``owner/repository@revision`` on the hub.
        prior: the prior.
        index: its ``model_index.json``.

    Returns:
        Its ``folder`` holds the settings.

    Raises:
        ValueError: there is none, its weights are not whole, or it is none for this prior; in one line.
    """
    if "vae" not in index:
        raise ValueError(f"prior_options.vae: {prior.name} works on pixels and has no VAE; leave it out")
    own = prior.folder / "vae"
    text = str(name)
    if is_single(text):
        return _single(user_path(text), text, own)
    source = _located(text)
    said, before = settings_of(source.folder / "config.json"), settings_of(own / "config.json")
    kind, wanted = said.get("_class_name"), index["vae"][1]
    if kind != wanted:
        raise ValueError(
            f"prior_options.vae must be an {wanted} for this prior, and {text} is of the kind {kind}"
        )
    for key, what in SHARED.items():
        if said.get(key, 4) != before.get(key, 4):
            raise ValueError(_other(text, said.get(key, 4), before.get(key, 4), what))
    depth = [len(each.get("block_out_channels", [])) for each in (said, before)]
    if depth[0] != depth[1]:
        raise ValueError(
            f"prior_options.vae: {text} makes pictures {2 ** max(depth[0] - 1, 0)} times smaller, and this prior's own "
            f"{2 ** max(depth[1] - 1, 0)} times; give one for such a model"
        )
    check_weights(source.folder.parent, source.folder.name)
    return source


def _single(file: Path, name: str, own: Path) -> Source:
    shapes = shapes_of(file)
    found = next((shapes[prefix + LAYER] for prefix in PREFIXES if prefix + LAYER in shapes), None)
    if found is None or len(found) != 4:
        raise ValueError(f"prior_options.vae: {file} holds no VAE ({LAYER} is not in it); give another file")
    wanted = settings_of(own / "config.json").get("latent_channels", 4)
    if found[1] != wanted:
        raise ValueError(_other(str(file), found[1], wanted, SHARED["latent_channels"]))
    return Source(own, name, file=file, parts=frozenset({own.name}))


def _other(name: str, found: object, wanted: object, what: str) -> str:
    return f"prior_options.vae: {name} has {found} {what}, and this prior's network takes {wanted}; give one for such a model"


def _located(text: str) -> Source:
    folder = user_path(text)
    for place in (folder, folder / "vae"):
        if (place / INDEX["VAE"]).is_file():
            return Source(place, text, licence=licence_of(place))
    if found := of_hub(text, "VAE"):
        return found
    raise ValueError(
        f"prior_options.vae must be a folder with a config.json and safetensors, a .safetensors file, or a hub id such as "
        f"owner/repository@revision, and {text!r} is none"
    )
