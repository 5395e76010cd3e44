"""Shared by all tests: tiny real pipelines, and the check for a GPU."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path

import pytest
import torch
from tiny_pipelines import clip_tokenizer

#: Files with tests of ten seconds and more. They come first: a worker that began one last would keep the others waiting.
LONG = ("test_gpu_report", "test_compile", "test_comparison", "test_run", "test_benchmarks")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONG)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


def pytest_collection_finish() -> None:
    """Spare every full collection the objects of what is imported, which stay to the end."""
    gc.collect()
    gc.freeze()


def write_tiny_prior(
    folder: Path, *, latent: bool, prediction: str = "epsilon", channels: int | None = None
) -> Path:
    """Save a prior of real classes with random weights: latent (with VAE) or in pixel space."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    channels = channels or (4 if latent else 3)
    UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    ).save_pretrained(folder / "unet")
    if latent:
        AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4, down_block_types=("DownEncoderBlock2D",) * 2,
                      up_block_types=("UpDecoderBlock2D",) * 2).save_pretrained(folder / "vae")  # fmt: skip
    clip_tokenizer().save_pretrained(folder / "tokenizer")
    CLIPTextModel(
        CLIPTextConfig(vocab_size=56, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                       max_position_embeddings=12, bos_token_id=54, eos_token_id=55, pad_token_id=55)
    ).save_pretrained(folder / "text_encoder")  # fmt: skip
    DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=prediction
    ).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "DiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        **({"vae": ["diffusers", "AutoencoderKL"]} if latent else {}),
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests embed stays out of the user's cache."""
    os.environ["DISTILL_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def latent_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_prior(tmp_path_factory.mktemp("latent"), latent=True)


@pytest.fixture(scope="session")
def pixel_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_prior(
        tmp_path_factory.mktemp("pixel"), latent=False, prediction="v_prediction", channels=12
    )
