"""What a safetensors file says of itself in its head: names and shapes of its tensors, without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from distill.convert import SUFFIXES
from distill.files.errors import first_line

#: What a file of Git LFS begins with where the file itself was never fetched.
POINTER = b"version https://git-lfs"
#: What to do about files that are not there, or not whole.
AGAIN = "download the model again"
#: Names of tensors, and their shapes.
Shapes = Mapping[str, tuple[int, ...]]


def shapes_of(path: Path) -> Shapes:
    """Read the names and shapes of a safetensors file's tensors.

    Raises:
        ValueError: it is not there, pickled, a pointer of Git LFS, or cut short; in one line with the remedy.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    if path.suffix in SUFFIXES:
        raise ValueError(
            f"{path} is pickled, and only safetensors are read; convert it: python -m distill.convert {path}"
        )
    try:
        with path.open("rb") as opened:
            if opened.read(len(POINTER)) == POINTER:
                raise ValueError(
                    f"{path} is a pointer of Git LFS, not the weights; fetch them with 'git lfs pull', or {AGAIN}"
                )
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is cut short or no safetensors ({first_line(error)}); {AGAIN}") from error


@dataclass(frozen=True)
class Kind:
    """A kind of model that is published as one file, in the names of its authors.

    Attributes:
        known: the name in ``distill.priors.table`` of the model whose settings are those of the kind.
        pipeline: its class in diffusers.
        mark: what one tensor's name begins or ends with, which no kind before it has.
        parts: what the names of each part's tensors begin with; the denoiser's first.
        begun: the name in the table of another model whose settings are taken instead: that it was trained from.
    """

    known: str
    pipeline: str
    mark: tuple[str, ...]
    parts: Mapping[str, tuple[str, ...]]
    begun: str = ""


#: What the names of an image encoder's tensors begin with.
VISION = "cond_stage_model.model.visual."
_UNET, _VAE = ("model.diffusion_model.",), ("first_stage_model.", "vae.")
_SD3 = {
    "transformer": ("model.diffusion_model.", "joint_blocks."),
    "vae": _VAE,
    "text_encoder": ("text_encoders.clip_l.",),
    "text_encoder_2": ("text_encoders.clip_g.",),
    "text_encoder_3": ("text_encoders.t5xxl.",),
}
_FLUX = {
    "transformer": ("model.diffusion_model.", "double_blocks."),
    "vae": _VAE,
    "text_encoder": ("text_encoders.clip_l.",),
    "text_encoder_2": ("text_encoders.t5xxl.",),
}
#: In the order in which they are looked for.
KINDS = (
    Kind(
        "mvdream", "MVDreamPipeline", ("model.diffusion_model.camera_embed.0.weight",),
        {"unet": _UNET, "vae": _VAE, "text_encoder": ("cond_stage_model.",), "image_encoder": (VISION,)}, "sd-2.1-base",
    ),
    Kind(
        "sdxl", "StableDiffusionXLPipeline", ("model.diffusion_model.label_emb.0.0.weight",),
        {"unet": _UNET, "vae": _VAE, "text_encoder": ("conditioner.embedders.0.",),
         "text_encoder_2": ("conditioner.embedders.1.",)},
    ),
    Kind(
        "sd-2.1", "StableDiffusionPipeline", ("cond_stage_model.model.token_embedding.weight",),
        {"unet": _UNET, "vae": _VAE, "text_encoder": ("cond_stage_model.",)},
    ),
    Kind(
        "sd-1.5", "StableDiffusionPipeline", ("model.diffusion_model.input_blocks.0.0.weight",),
        {"unet": _UNET, "vae": _VAE, "text_encoder": ("cond_stage_model.",)},
    ),
    Kind("sd-3.5-large", "StableDiffusion3Pipeline", ("joint_blocks.37.x_block.mlp.fc1.weight",), _SD3),
    Kind("sd-3.5-medium", "StableDiffusion3Pipeline", ("joint_blocks.0.x_block.attn2.qkv.weight",), _SD3),
    Kind("sd-3-medium", "StableDiffusion3Pipeline", ("joint_blocks.0.context_block.adaLN_modulation.1.bias",), _SD3),
    Kind("flux.1-dev", "FluxPipeline", ("guidance_in.in_layer.weight",), _FLUX),
    Kind("flux.1-schnell", "FluxPipeline", ("double_blocks.0.img_attn.norm.key_norm.scale",), _FLUX),
)  # fmt: skip


#: Tensors of models that have the layers of Stable Diffusion XL and other noise levels.
UNLIKE = {"edm_mean": "Playground v2.5", "edm_vpred.sigma_max": "CosXL"}


def kind_of(path: Path, shapes: Shapes) -> Kind:
    """Tell the kind of model that a single file holds.

    Raises:
        ValueError: it holds none of the known kinds, or one that looks like another.
    """
    if other := next(
        (said for mark, said in UNLIKE.items() if any(name.endswith(mark) for name in shapes)), None
    ):
        raise ValueError(f"{path} is {other}, whose noise levels are not read; give another model")
    for kind in KINDS:
        if any(name.endswith(kind.mark) for name in shapes):
            return kind
    if any(".lora_" in name or ".hada_" in name or ".lokr_" in name for name in shapes):
        raise ValueError(
            f"{path} is a LoRA, not a model; give it as prior_options.loras=[{path}], beside a prior="
        )
    if any(name.startswith(("down_blocks.", "transformer_blocks.", "encoder.")) for name in shapes):
        raise ValueError(
            f"{path} is one part of a model; give the folder that has its model_index.json, or a file with the whole model"
        )
    raise ValueError(
        f"{path} holds no model that is known as a single file: Stable Diffusion 1, 2, XL, 3, 3.5, FLUX.1, MVDream or ImageDream, under its authors' "
        "names; give a folder in the diffusers layout"
    )


def parts_in(kind: Kind, shapes: Shapes) -> frozenset[str]:
    """The parts of a pipeline that a file has tensors of."""
    return frozenset(
        part for part, starts in kind.parts.items() if any(name.startswith(starts) for name in shapes)
    )
