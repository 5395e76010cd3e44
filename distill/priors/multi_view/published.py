"""Published multi-view models as networks of diffusers: their settings, and the names of their tensors.

Three layouts are known, all of them of weights alone: MVDream's and ImageDream's files as their authors saved them, and two ports
to folders of diffusers. One of these keeps the authors' names in a UNet of its own (``MultiViewUNetModel``), the other, of MVDream
alone, has diffusers' names and the camera's layers in a part of their own (``camera_proj``). No code of a port is run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from distill.priors.header import AGAIN
from distill.priors.multi_view.attention import COUNT, TOLD
from distill.priors.multi_view.camera import NUMBERS

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

#: The class that the port under the authors' names says its UNet is of.
PORTED = "MultiViewUNetModel"
#: The part of the other port that embeds cameras.
CAMERA_PART = "camera_proj"
#: What a ``Source`` calls a single file whose network is given cameras.
MARK = "cameras"
#: Height and width of MVDream's latents: pictures of 256.
SIZE = 32
#: What the names of the denoiser's tensors begin with in a single file.
IN_FILE = "model.diffusion_model."
#: The first of the camera's layers, under the authors' name.
FIRST = "camera_embed.0.weight"
#: What a ``Source`` calls a single file whose network is shown a picture: ImageDream.
PROMPTED = "picture"
#: The folder of ImageDream's image encoder.
ENCODER = "image_encoder"
#: What the names of the tensors begin with that make tokens of a picture's states.
RESAMPLER = "image_embed."
#: Settings of ImageDream's UNet beside diffusers': the width of the picture's states, and the weight of attention to its tokens.
WIDTH, WEIGHT = "image_prompt_width", "image_prompt_weight"
#: Width of the states of CLIP ViT-H, which the authors' code has as a constant.
VIT_H = 1280
#: How the names of cross-attentions' processors end.
CROSS = ".attn2.processor"

_LAYERS = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip
_ENDS = {
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "camera_embed.0": "class_embedding.linear_1", "camera_embed.2": "class_embedding.linear_2",
    "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
}  # fmt: skip
_MIDDLE = {"0": "mid_block.resnets.0", "1": "mid_block.attentions.0", "2": "mid_block.resnets.1"}


def settings_of_unet(said: Mapping[str, Any], where: str, *, cameras: bool = False) -> dict[str, Any]:
    """Return a denoiser's settings as diffusers' UNet takes them.

    Args:
        said: what its ``config.json`` says, of diffusers or of a port.
        where: that file, for errors.
        cameras: a part or a file beside it has the camera's layers.

    Raises:
        ValueError: they are of a network that is neither MVDream's nor ImageDream's.
    """
    if said.get("_class_name") != PORTED:
        # Stable Diffusion's settings, whose pictures are twice as large.
        own = {**TOLD, "sample_size": min(int(said.get("sample_size") or SIZE), SIZE)} if cameras else {}
        return {**said, **own}
    picture = (
        {COUNT: said["ip_dim"], WIDTH: VIT_H, WEIGHT: said.get("ip_weight", 1.0)}
        if said.get("ip_dim")
        else {}
    )
    try:
        widths = [said["model_channels"] * times for times in said["channel_mult"]]
        attends = [2**level in said["attention_resolutions"] for level in range(len(widths))]
        layers, text = said["num_res_blocks"], said["context_dim"]
        size, channels, out = said["image_size"], said["in_channels"], said["out_channels"]
        heads = [_heads(said, width) for width in widths]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{where} must have the settings of MVDream's UNet, and {error} is missing or wrong; {AGAIN}"
        ) from error
    if said.get("camera_dim") != NUMBERS:
        raise ValueError(
            f"{where} must be of a UNet that is given cameras by {NUMBERS} numbers, got camera_dim={said.get('camera_dim')}"
        )
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": size,
        "in_channels": channels,
        "out_channels": out,
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": ["CrossAttnDownBlock2D" if own else "DownBlock2D" for own in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if own else "UpBlock2D" for own in reversed(attends)],
        "attention_head_dim": heads,
        "cross_attention_dim": text,
        "transformer_layers_per_block": said.get("transformer_depth", 1),
        "use_linear_projection": True,
        **TOLD,
        **picture,
    }


def _heads(said: Mapping[str, Any], width: int) -> int:
    """How many heads attend at a width: so many of some channels each, or a number of them.

    Raises:
        KeyError: the settings say neither, or what does not divide the width.
    """
    inner = said["num_head_channels"]
    found: int = width // inner if inner > 0 else said["num_heads"]
    if found < 1 or width % found or (inner > 0 and width % inner):
        raise KeyError("num_head_channels" if inner > 0 else "num_heads")
    return found


def renamed(name: str, layers: int) -> str:
    """Return diffusers' name of a UNet's tensor for its authors' name, for example ``input_blocks.1.0.in_layers.0.weight``.

    Args:
        name: without what stands in front of it in a single file.
        layers: of each level, ``layers_per_block``.

    Raises:
        ValueError: it is no name of a UNet's tensor.
    """
    for theirs, ours in _ENDS.items():
        if name.startswith(f"{theirs}."):
            return ours + name[len(theirs) :]
    found = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.+)", name)
    if found:
        way, rest = ("down" if found[1] == "input" else "up"), found[4]
        level, place = divmod(int(found[2]) - (way == "down"), layers + 1)
        block = f"{way}_blocks.{level}"
        if changes := re.fullmatch(r"(?:op|conv)\.(weight|bias)", rest):
            return f"{block}.{way}samplers.0.conv.{changes[1]}"
        kind = "resnets" if found[3] == "0" else "attentions"
        return f"{block}.{kind}.{place}.{_layer(rest)}"
    if (middle := re.fullmatch(r"middle_block\.([012])\.(.+)", name)) is not None:
        return f"{_MIDDLE[middle[1]]}.{_layer(middle[2])}"
    raise ValueError(f"{name!r} is no name of a tensor of MVDream's UNet")


def _layer(rest: str) -> str:
    """Name a residual block's layer as diffusers does; an attention's are the same."""
    for theirs, ours in _LAYERS.items():
        if rest.startswith(f"{theirs}."):
            return ours + rest[len(theirs) :]
    # Diffusers keeps the projections of a picture's tokens in the processor.
    return re.sub(r"\.attn2\.to_([kv])_ip\.", r".attn2.processor.to_\1_ip.0.", rest)


def marked(names: Iterable[str]) -> frozenset[str]:
    """Return ``MARK`` where a single file's network is given cameras, and with it ``PROMPTED`` where it is shown a picture."""
    names = list(names)
    if not any(name.endswith(FIRST) for name in names):
        return frozenset()
    shown = any(name.startswith(IN_FILE + RESAMPLER) for name in names)
    return frozenset({MARK, PROMPTED} if shown else {MARK})


def names_of(found: Iterable[str], settings: Mapping[str, Any]) -> dict[str, str]:
    """Return diffusers' name for each of a UNet's names, the authors' or diffusers' own.

    Of ImageDream, the resampler's are left out, and what self-attention would do with a picture's tokens, which it never gets.
    """
    layers = int(settings["layers_per_block"])
    if settings.get(COUNT):
        found = [name for name in found if not re.search(r"^image_embed\.|\.attn1\.to_[kv]_ip\.", name)]
    theirs = re.compile(r"(input_blocks|output_blocks|middle_block|time_embed|camera_embed|out)\.")
    return {name: renamed(name, layers) if theirs.match(name) else name for name in found}


def has_cameras_beside(folder: Path) -> bool:
    """Tell whether the camera's layers are a part of their own, as a folder's index says or the part itself."""
    index = folder / "model_index.json"
    said = json.loads(index.read_text()).get(CAMERA_PART) if index.is_file() else None
    return (isinstance(said, list) and said[-1] is not None) or (folder / CAMERA_PART).is_dir()


def files_of(folder: Path, file: Path | None = None) -> dict[Path, str]:
    """Return the files of a published multi-view UNet, each with what the names of its tensors begin with.

    None where the folder's UNet is one of diffusers that needs no other names.

    Args:
        folder: of the prior.
        file: with all of its weights, under its authors' names; or None.

    Raises:
        ValueError: the camera's part has no safetensors.
    """
    if file is not None:
        return {file: IN_FILE}
    unet, cameras = folder / "unet", sorted((folder / CAMERA_PART).glob("*.safetensors"))
    said = json.loads((unet / "config.json").read_text()) if (unet / "config.json").is_file() else {}
    if said.get("_class_name") != PORTED and not has_cameras_beside(folder):
        return {}
    if said.get("_class_name") != PORTED and not cameras:
        raise ValueError(f"{folder / CAMERA_PART} has no safetensors")
    found = sorted(unet.glob("*.safetensors"))
    # Of weights in two precisions, those in full.
    full = [path for path in found if not re.search(r"\.(fp16|bf16)[.-]", path.name)]
    return dict.fromkeys([*(full or found), *cameras], "")


def build(settings: Mapping[str, Any]) -> UNet2DConditionModel:
    """Make a UNet of diffusers from settings of ``settings_of_unet``; ImageDream's cross-attention is that of an IP-Adapter."""
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    plain = {name: value for name, value in settings.items() if name not in (COUNT, WIDTH, WEIGHT)}
    network: UNet2DConditionModel = UNet2DConditionModel.from_config(plain)
    if not (count := settings.get(COUNT)):
        return network
    processors = dict(network.attn_processors)
    for name in processors:
        if name.endswith(CROSS):
            layer = network.get_submodule(name.removesuffix(".processor"))
            processors[name] = IPAdapterAttnProcessor2_0(
                layer.inner_dim, layer.cross_attention_dim, num_tokens=(count,), scale=settings[WEIGHT]
            )
    network.set_attn_processor(processors)
    return network


def load_unet(
    files: Mapping[Path, str], settings: Mapping[str, Any], dtype: torch.dtype
) -> UNet2DConditionModel:
    """Make the UNet of diffusers with published weights; of ImageDream, without the resampler.

    Args:
        files: safetensors, each with what the names of the tensors that are taken from it begin with.
        settings: of ``settings_of_unet``.
        dtype: of the weights in memory.

    Raises:
        ValueError: a weight is missing, not known, or of another shape.
    """
    state: dict[str, Tensor] = {}
    for path, prefix in files.items():
        with safe_open(path, "pt") as opened:
            plain = {
                name.removeprefix(prefix): name
                for name in opened.keys()  # noqa: SIM118
                if name.startswith(prefix)
            }
            for name, ours in names_of(plain, settings).items():
                state[ours] = opened.get_tensor(plain[name]).to(dtype)
    # The other port's part for cameras has the two layers alone.
    state = {re.sub(r"^(?=linear_[12]\.)", "class_embedding.", name): value for name, value in state.items()}
    with torch.device("meta"):
        network = build(settings)
    wanted = {name: value.shape for name, value in network.state_dict().items()}
    wrong = sorted(name for name in {*wanted, *state} if wanted.get(name) != _shape(state.get(name)))
    if wrong:
        where, model = next(iter(files)), "ImageDream" if settings.get(COUNT) else "MVDream"
        raise ValueError(
            f"{where} does not have the weights of {model}'s UNet: {len(wrong)} are missing, not known or of another shape, "
            f"such as {wrong[0]}; {AGAIN}"
        )
    network.load_state_dict(state, assign=True)
    return network


def _shape(value: Tensor | None) -> torch.Size | None:
    return None if value is None else value.shape
