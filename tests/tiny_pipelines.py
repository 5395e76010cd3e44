"""Small pipelines of diffusers with random weights: the classes and folders of the published ones, a few kilobytes each."""

from __future__ import annotations

import io
import json
import string
import tempfile
from pathlib import Path
from typing import Any

import torch

LETTERS = [*string.ascii_lowercase, ","]


def clip_tokenizer() -> Any:
    """Read from the two files that it is published as."""
    from transformers import CLIPTokenizer

    pieces = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=12)


def clip_config(width: int = 16, projection: int = 16) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=2 * len(LETTERS) + 2, hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=12, bos_token_id=54, eos_token_id=55, pad_token_id=55, projection_dim=projection,
    )  # fmt: skip


def clip(width: int = 16) -> Any:
    from transformers import CLIPTextModel

    return CLIPTextModel(clip_config(width)).eval()


def clip_projected(width: int = 16) -> Any:
    from transformers import CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(clip_config(width, width)).eval()


def sentencepiece() -> bytes:
    """The letters as T5's tokenizer is published, ``spiece.model``."""
    from sentencepiece import SentencePieceTrainer

    made = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(LETTERS)]), model_writer=made, vocab_size=4 + len(LETTERS), pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, normalization_rule_name="identity", minloglevel=2,
    )  # fmt: skip
    return made.getvalue()


def t5_tokenizer() -> Any:
    from transformers import T5Tokenizer

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "spiece.model").write_bytes(sentencepiece())
        return T5Tokenizer.from_pretrained(folder, extra_ids=0, model_max_length=77)


def t5(width: int = 16) -> Any:
    from transformers import T5Config, T5EncoderModel

    sizes = {"d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return T5EncoderModel(T5Config(vocab_size=4 + len(LETTERS), d_model=width, **sizes)).eval()


def gemma_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, normalizers
    from transformers import GemmaTokenizerFast

    letters = string.ascii_letters + string.digits + ",.:'!?-_()[]{}\"/\n"
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *letters]
    made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    made.normalizer = normalizers.Replace(" ", "▁")
    return GemmaTokenizerFast(tokenizer_object=made)


def gemma(width: int = 16) -> Any:
    from transformers import Gemma2Config, Gemma2Model

    return Gemma2Model(
        Gemma2Config(vocab_size=100, hidden_size=width, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                     num_key_value_heads=1, head_dim=8)
    ).eval()  # fmt: skip


def vae(channels: int = 4, **more: Any) -> Any:
    """Halves a picture's sides three times, as the published ones do."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(4, 4, 8, 8), norm_num_groups=2, latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, **more,
    ).eval()  # fmt: skip


def unet(channels: int = 4, out: int | None = None, cross: int = 16, **more: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8, in_channels=channels, out_channels=out or channels, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross, attention_head_dim=2, norm_num_groups=4, **more,
    ).eval()  # fmt: skip


def ddim(prediction: str = "epsilon") -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=prediction,
        clip_sample=False, steps_offset=1,
    )  # fmt: skip


def stable_diffusion(prediction: str = "epsilon") -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae(), clip(), clip_tokenizer(), unet(), ddim(prediction), None, None, requires_safety_checker=False
    )


def multi_view() -> Any:
    """Stable Diffusion whose network is given cameras."""
    from diffusers import StableDiffusionPipeline

    network = unet(class_embed_type="projection", projection_class_embeddings_input_dim=16)
    return StableDiffusionPipeline(
        vae(), clip(), clip_tokenizer(), network, ddim(), None, None, requires_safety_checker=False
    )


def stable_diffusion_xl() -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    network = unet(
        cross=32, addition_embed_type="text_time", addition_time_embed_dim=8, transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )  # fmt: skip
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        timestep_spacing="leading",
        steps_offset=1,
    )
    return StableDiffusionXLPipeline(
        vae(force_upcast=True),
        clip(),
        clip_projected(),
        clip_tokenizer(),
        clip_tokenizer(),
        network,
        scheduler,
    )


def deepfloyd() -> Any:
    from diffusers import DDPMScheduler, IFPipeline

    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", variance_type="learned_range", clip_sample=False
    )
    network = unet(3, 6, encoder_hid_dim=16, encoder_hid_dim_type="text_proj")
    return IFPipeline(
        t5_tokenizer(), t5(), network, scheduler, None, None, None, requires_safety_checker=False
    )


def pixart(sample_size: int = 8) -> Any:
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

    network = PixArtTransformer2DModel(
        num_attention_heads=3, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, cross_attention_dim=24,
        sample_size=sample_size, patch_size=2, caption_channels=16, norm_type="ada_norm_single",
    ).eval()  # fmt: skip
    return PixArtAlphaPipeline(t5_tokenizer(), t5(), vae(), network, DPMSolverMultistepScheduler())


def pixart_sigma() -> Any:
    from diffusers import PixArtSigmaPipeline

    return PixArtSigmaPipeline(**pixart().components)


def stable_diffusion_3() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    network = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32, out_channels=16,
        pos_embed_max_size=16,
    ).eval()  # fmt: skip
    autoencoder = vae(
        16, shift_factor=0.0609, scaling_factor=1.5305, use_quant_conv=False, use_post_quant_conv=False
    )
    return StableDiffusion3Pipeline(
        network, FlowMatchEulerDiscreteScheduler(shift=3.0), autoencoder, clip_projected(), clip_tokenizer(),
        clip_projected(), clip_tokenizer(), t5(32), t5_tokenizer(),
    )  # fmt: skip


def flux(distilled: bool = True) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    network = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=distilled,
    ).eval()  # fmt: skip
    autoencoder = vae(
        4, shift_factor=0.1159, scaling_factor=0.3611, use_quant_conv=False, use_post_quant_conv=False
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=distilled)
    return FluxPipeline(scheduler, autoencoder, clip(), clip_tokenizer(), t5(32), t5_tokenizer(), network)


def sana() -> Any:
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

    network = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=8, patch_size=1,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=16,
        sample_size=8,
    ).eval()  # fmt: skip
    autoencoder = AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, scaling_factor=0.41407,
        encoder_block_types=("ResBlock", "EfficientViTBlock"), decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        downsample_block_type="conv", upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu",
    ).eval()  # fmt: skip
    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
    )
    return SanaPipeline(gemma_tokenizer(), gemma(), autoencoder, network, scheduler)


MAKERS = {
    "stable_diffusion": stable_diffusion,
    "stable_diffusion_v": lambda: stable_diffusion("v_prediction"),
    "stable_diffusion_xl": stable_diffusion_xl,
    "deepfloyd": deepfloyd,
    "pixart": pixart,
    "pixart_sized": lambda: pixart(128),
    "pixart_sigma": pixart_sigma,
    "stable_diffusion_3": stable_diffusion_3,
    "flux": flux,
    "flux_undistilled": lambda: flux(False),
    "sana": sana,
}


#: Of several pictures at a time, which no pipeline of diffusers is.
TOGETHER = {"multi_view": multi_view}


def make(name: str) -> Any:
    """A pipeline with the same weights at every call, silent."""
    torch.manual_seed(0)
    pipeline = {**MAKERS, **TOGETHER}[name]()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
