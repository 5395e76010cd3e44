"""Small pipelines as single files, under the names that the models' authors gave their tensors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_pipelines import clip, clip_projected, clip_tokenizer, unet, vae
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_UNET = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0", "conv_out": "out.2", "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final", "encoder.layers": "transformer.resblocks", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


def _replaced(name: str, names: dict[str, str]) -> str:
    for ours, theirs in names.items():
        name = re.sub(rf"(?<![\w]){re.escape(ours)}(?![\w])", theirs, name)
    return name


def of_unet(network: Any, per_block: int = 1) -> dict[str, Tensor]:
    """A UNet's tensors, numbered through as in CompVis' code."""
    found, size = {}, per_block + 1
    for name, value in network.state_dict().items():
        block = re.match(
            r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.", name
        )
        if block:
            way, number, kind, index = block[1], int(block[2]), block[3], int(block[4])
            rest = name[block.end() :]
            if kind in ("downsamplers", "upsamplers"):
                attends = any(
                    key.startswith(f"up_blocks.{number}.attentions") for key in network.state_dict()
                )
                where = (
                    f"input_blocks.{(number + 1) * size}.0." + rest.replace("conv", "op", 1)
                    if way == "down"
                    else f"output_blocks.{number * size + per_block}.{2 if attends else 1}.{rest}"
                )
            else:
                place = number * size + index + (1 if way == "down" else 0)
                inner = rest if kind == "attentions" else _replaced(rest, _RESNET)
                where = f"{'input' if way == 'down' else 'output'}_blocks.{place}.{int(kind == 'attentions')}.{inner}"
        elif middle := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.", name):
            rest = name[middle.end() :]
            place = 1 if middle[1] == "attentions" else 2 * int(middle[2])
            where = f"middle_block.{place}.{rest if place == 1 else _replaced(rest, _RESNET)}"
        else:
            where = _replaced(name, _UNET)
        found[f"model.diffusion_model.{where}"] = value
    return found


def of_vae(autoencoder: Any, prefix: str = "first_stage_model.") -> dict[str, Tensor]:
    """A VAE's tensors; its attention's projections are convolutions."""
    found, last = {}, len(autoencoder.config.block_out_channels) - 1
    for name, value in autoencoder.state_dict().items():
        where = name
        if block := re.match(r"(en|de)coder\.(down|up)_blocks\.(\d+)\.", name):
            number = int(block[3]) if block[2] == "down" else last - int(block[3])
            rest = name[block.end() :].replace("resnets.", "block.").replace("conv_shortcut", "nin_shortcut")
            rest = re.sub(r"(down|up)samplers\.0\.", r"\1sample.", rest)
            where = f"{block[1]}coder.{block[2]}.{number}.{rest}"
        where = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", where)
        if "mid_block.attentions.0" in where:
            where = _replaced(where.replace("mid_block.attentions.0", "mid.attn_1"), _ATTENTION)
            if value.ndim == 2:
                value = value[:, :, None, None]
        found[prefix + where.replace("conv_norm_out", "norm_out")] = value
    return found


def of_clip(encoder: Any, prefix: str) -> dict[str, Tensor]:
    """CLIP's text encoder under the names of transformers."""
    weights = encoder.state_dict().items()
    return {f"{prefix}transformer.text_model.{name.removeprefix('text_model.')}": x for name, x in weights}


def of_open_clip(encoder: Any, prefix: str) -> dict[str, Tensor]:
    """A text encoder under OpenCLIP's names: one matrix for queries, keys and values, the projection transposed."""
    weights, found = encoder.state_dict(), {}
    for name, value in weights.items():
        plain = name.removeprefix("text_model.")
        if joined := re.match(r"(encoder\.layers\.\d+\.)self_attn\.q_proj\.(weight|bias)", plain):
            parts = [weights[name.replace("q_proj", f"{each}_proj")] for each in "qkv"]
            where = _replaced(joined[1], _OPEN_CLIP) + f"attn.in_proj_{joined[2]}"
            found[prefix + where] = torch.cat(parts)
        elif plain == "text_projection.weight":
            found[prefix + "text_projection"] = value.T
        elif not re.search("[kv]_proj", plain):
            found[prefix + _replaced(plain, _OPEN_CLIP)] = value
    return found


def wide_xl() -> Any:
    """XL with text encoders of two widths, by which diffusers tells them apart in a single file."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    torch.manual_seed(0)
    network = unet(
        cross=40, addition_embed_type="text_time", addition_time_embed_dim=8, transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=6 * 8 + 24,
    )  # fmt: skip
    scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    tokenizers = clip_tokenizer(), clip_tokenizer()
    return StableDiffusionXLPipeline(vae(), clip(), clip_projected(24), *tokenizers, network, scheduler)


def tensors_of(pipeline: Any) -> dict[str, Tensor]:
    """All tensors of a Stable Diffusion 1 or XL pipeline as its single file has them."""
    found = {**of_unet(pipeline.unet), **of_vae(pipeline.vae)}
    if hasattr(pipeline, "text_encoder_2"):
        found |= of_clip(pipeline.text_encoder, "conditioner.embedders.0.")
        return found | of_open_clip(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    return found | of_clip(pipeline.text_encoder, "cond_stage_model.")


def write(tensors: dict[str, Tensor], path: Path) -> Path:
    save_file({name: value.clone().contiguous() for name, value in tensors.items()}, path)
    return path
