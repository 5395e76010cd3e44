"""Published multi-view weights: the names of their tensors, their folders and their file, on networks of a few kilobytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from single_files import of_clip, of_unet, of_vae
from tiny_pipelines import clip, clip_tokenizer, ddim, vae
from torch import Tensor

from distill.cameras import turntable
from distill.forecast.network import shadow
from distill.priors import load_prior
from distill.priors.multi_view.attention import TOLD
from distill.priors.multi_view.published import PORTED, names_of, renamed, settings_of_unet
from distill.priors.preset import preset_of
from distill.priors.source import find
from distill.priors.whole import check_complete
from distill.run.config.implied import takes_views

#: MVDream's UNet as the port's config.json has it, but with 32 channels instead of 320, two levels, and text of width 16.
SAID: dict[str, Any] = {
    "_class_name": PORTED, "attention_resolutions": [2, 1], "camera_dim": 16, "channel_mult": [1, 2], "context_dim": 16,
    "image_size": 8, "in_channels": 4, "model_channels": 32, "num_head_channels": 16, "num_res_blocks": 2, "out_channels": 4,
    "transformer_depth": 1, "use_checkpoint": False, "ip_dim": 0,
}  # fmt: skip
FULL = {**SAID, "attention_resolutions": [4, 2, 1], "channel_mult": [1, 2, 4, 4], "context_dim": 1024, "image_size": 32,
        "model_channels": 320, "num_head_channels": 64}  # fmt: skip

#: Names in the published files, and diffusers'.
NAMES = {
    "time_embed.0.weight": "time_embedding.linear_1.weight",
    "time_embed.2.bias": "time_embedding.linear_2.bias",
    "camera_embed.0.weight": "class_embedding.linear_1.weight",
    "camera_embed.2.bias": "class_embedding.linear_2.bias",
    "input_blocks.0.0.weight": "conv_in.weight",
    "input_blocks.1.0.in_layers.0.weight": "down_blocks.0.resnets.0.norm1.weight",
    "input_blocks.1.0.emb_layers.1.bias": "down_blocks.0.resnets.0.time_emb_proj.bias",
    "input_blocks.2.1.transformer_blocks.0.attn1.to_q.weight": "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.weight",
    "input_blocks.3.0.op.weight": "down_blocks.0.downsamplers.0.conv.weight",
    "input_blocks.4.0.skip_connection.weight": "down_blocks.1.resnets.0.conv_shortcut.weight",
    "input_blocks.11.0.out_layers.3.weight": "down_blocks.3.resnets.1.conv2.weight",
    "middle_block.0.in_layers.2.weight": "mid_block.resnets.0.conv1.weight",
    "middle_block.1.proj_in.weight": "mid_block.attentions.0.proj_in.weight",
    "middle_block.2.out_layers.0.bias": "mid_block.resnets.1.norm2.bias",
    "output_blocks.2.1.conv.weight": "up_blocks.0.upsamplers.0.conv.weight",
    "output_blocks.5.2.conv.bias": "up_blocks.1.upsamplers.0.conv.bias",
    "output_blocks.11.1.norm.weight": "up_blocks.3.attentions.2.norm.weight",
    "out.0.weight": "conv_norm_out.weight",
    "out.2.bias": "conv_out.bias",
}


def network_of(said: dict[str, Any]) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_config(settings_of_unet(said, "config.json"))


def under_authors_names(network: Any) -> dict[str, Tensor]:
    """A UNet's tensors as MVDream's authors number them, without what stands in front of them in their file."""
    found = {name.removeprefix("model.diffusion_model."): x for name, x in of_unet(network, 2).items()}
    camera = {"class_embedding.linear_1": "camera_embed.0", "class_embedding.linear_2": "camera_embed.2"}
    for ours, theirs in camera.items():
        for end in ("weight", "bias"):
            found[f"{theirs}.{end}"] = found.pop(f"{ours}.{end}")
    return found


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(0)
    return network_of(SAID).eval()


def write_folder(folder: Path, index_of_unet: list[str], **more: Any) -> Path:
    """The parts of a folder that both ports have beside the UNet."""
    torch.manual_seed(1)
    vae().save_pretrained(folder / "vae")
    clip().save_pretrained(folder / "text_encoder")
    clip_tokenizer().save_pretrained(folder / "tokenizer")
    ddim().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "MVDreamPipeline", "_diffusers_version": "0.25.0", "feature_extractor": [None, None],
        "image_encoder": [None, None], "requires_safety_checker": False, "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": index_of_unet, "vae": ["diffusers", "AutoencoderKL"], **more,
    }  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def port(folder: Path, network: Any, **changes: Any) -> Path:
    """The port with a UNet of its own, whose code, were it run, would fail."""
    (folder / "unet").mkdir(parents=True)
    (folder / "unet/config.json").write_text(json.dumps({**SAID, **changes}))
    (folder / "unet/mv_unet.py").write_text("raise RuntimeError('this was run')\n")
    (folder / "pipeline.py").write_text("raise RuntimeError('this was run')\n")
    tensors = {name: value.contiguous() for name, value in under_authors_names(network).items()}
    save_file(tensors, folder / "unet/diffusion_pytorch_model.safetensors", {"format": "pt"})
    return write_folder(folder, ["mv_unet", PORTED])


def other_port(folder: Path, network: Any) -> Path:
    """The port under diffusers' names, with the camera's layers in a part of their own."""
    plain = {name: x for name, x in network.state_dict().items() if "class_embedding" not in name}
    camera = {
        name.removeprefix("class_embedding."): x
        for name, x in network.state_dict().items()
        if name not in plain
    }
    settings = {name: value for name, value in dict(network.config).items() if name not in TOLD}
    for part, tensors, said in (
        ("unet", plain, {**settings, "_class_name": "UNet2DConditionModel"}),
        ("camera_proj", camera, {"_class_name": "CameraMatrixEmbedding", "in_channels": 16}),
    ):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(said, default=list))
        save_file(tensors, folder / part / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    return write_folder(
        folder,
        ["mvdream.unet", "UNet2DConditionModel"],
        camera_proj=["mvdream.camera_proj", "CameraMatrixEmbedding"],
    )


def file_of(path: Path, network: Any) -> Path:
    """The authors' own file, pickled, with what else is in it."""
    tensors = {f"model.diffusion_model.{name}": x for name, x in under_authors_names(network).items()}
    torch.manual_seed(1)
    tensors |= of_vae(vae()) | of_clip(clip(), "cond_stage_model.")
    tensors |= {"betas": torch.linspace(0.00085, 0.012, 1000), "alphas_cumprod": torch.linspace(1, 0, 1000)}
    torch.save({name: value.clone().contiguous() for name, value in tensors.items()}, path)
    return path


def prediction(prior: Any) -> Tensor:
    x = torch.randn(4, *prior.shape, generator=torch.Generator().manual_seed(2))
    return prior.predict_noise(x, torch.full((4,), 300), prior.embed(["a mug"] * 4), turntable(4))


@pytest.fixture(scope="module")
def wanted(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    """What the network gives from a folder of diffusers' own."""
    folder = tmp_path_factory.mktemp("own")
    network.save_pretrained(folder / "unet")
    write_folder(folder, ["diffusers", "UNet2DConditionModel"], _class_name="StableDiffusionPipeline")
    return prediction(load_prior(folder, dtype=torch.float32))


def test_names_of_the_published_files() -> None:
    for theirs, ours in NAMES.items():
        assert renamed(theirs, 2) == ours
    with pytest.raises(ValueError, match="'input_blocks' is no name of a tensor of MVDream's UNet"):
        renamed("input_blocks", 2)


def test_every_name_of_the_published_size_is_diffusers_own() -> None:
    with torch.device("meta"):
        full = network_of(FULL)
    sizes = {name: value.shape for name, value in full.state_dict().items()}
    theirs = under_authors_names(full)
    assert set(NAMES) <= set(theirs)
    found = names_of(theirs, full.config)
    assert {found[name]: value.shape for name, value in theirs.items()} == sizes
    # Stable Diffusion 2.1's UNet has 865,910,724 parameters; on top are two layers of 1,280 for cameras.
    assert sum(value.numel() for value in theirs.values()) == 865_910_724 + 17 * 1280 + 1281 * 1280
    assert tuple(full.config.attention_head_dim) == (5, 10, 20, 20)
    assert sizes["class_embedding.linear_1.weight"] == (1280, 16)
    assert full.config.down_block_types[-1] == "DownBlock2D" and full.config.up_block_types[0] == "UpBlock2D"
    # As diffusers converts Stable Diffusion's names, whose labels' layers are where the cameras' are.
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    labelled = {
        f"model.diffusion_model.{name.replace('camera_embed', 'label_emb.0')}": value
        for name, value in theirs.items()
    }
    converted = convert_ldm_unet_checkpoint(labelled, dict(full.config))
    assert {name: value.shape for name, value in converted.items()} == sizes


@pytest.mark.slow
def test_both_ports_give_the_same_network_and_run_no_code(
    network: Any, wanted: Tensor, tmp_path: Path
) -> None:
    for made in (port(tmp_path / "one", network), other_port(tmp_path / "two", network)):
        prior = load_prior(made, dtype=torch.float32)
        assert (prior.views, prior.image_size) == (4, 64)
        assert torch.equal(prediction(prior), wanted)
        assert preset_of(str(made)) == "multi_view"
        assert takes_views({"prior": str(made)})
        source = find(made)
        check_complete(source, prior.family, json.loads((made / "model_index.json").read_text()) | {"unet": ["diffusers", "UNet2DConditionModel"]})  # fmt: skip
        forecast = shadow(source, torch.float32)
        assert forecast.views == 4
        assert forecast.network.config.cross_attention_dim == 16


@pytest.mark.slow
def test_the_authors_file_is_converted_once_and_loaded(network: Any, wanted: Tensor, tmp_path: Path) -> None:
    pickled = file_of(tmp_path / "sd-v2.1-base-4view.pt", network)
    with pytest.raises(ValueError, match=r"is pickled, .* convert it: python -m distill.convert"):
        load_prior(pickled)
    command = [sys.executable, "-m", "distill.convert", str(pickled)]
    subprocess.run(command, check=True, capture_output=True)
    file = tmp_path / "sd-v2.1-base-4view.safetensors"
    assert load_file(file)["model.diffusion_model.camera_embed.0.weight"].shape == (128, 16)
    # Beside it, the settings of Stable Diffusion 2.1 base: no layers for cameras, and pictures of 512.
    settings = tmp_path / "settings"
    (settings / "unet").mkdir(parents=True)
    said = {name: value for name, value in dict(network.config).items() if name not in TOLD}
    (settings / "unet/config.json").write_text(
        json.dumps({**said, "_class_name": "UNet2DConditionModel", "sample_size": 64}, default=list)
    )
    write_folder(settings, ["diffusers", "UNet2DConditionModel"], _class_name="StableDiffusionPipeline")
    prior = load_prior(file, dtype=torch.float32, config=settings, image_size=64)
    assert prior.views == 4
    torch.testing.assert_close(prediction(prior), wanted, atol=1e-6, rtol=1e-5)
    assert load_prior(file, dtype=torch.float32, config=settings).image_size == 256
    assert preset_of(str(file)) == "multi_view"


def error_of(prior: Path, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        load_prior(prior, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.slow
def test_a_ports_folder_has_the_settings_of_mvdreams_own_file(
    network: Any, wanted: Tensor, tmp_path: Path
) -> None:
    tensors = torch.load(file_of(tmp_path / "own.pt", network), weights_only=True)
    del tensors["betas"], tensors["alphas_cumprod"]
    file, doubled = tmp_path / "own.safetensors", tmp_path / "doubled.safetensors"
    save_file(tensors, file)
    save_file({name: 2 * x if "out.2" in name else x for name, x in tensors.items()}, doubled)
    for folder in (port(tmp_path / "one", network), other_port(tmp_path / "two", network)):
        prior = load_prior(file, dtype=torch.float32, config=folder)
        assert (prior.views, prior.image_size) == (4, 64)
        torch.testing.assert_close(prediction(prior), wanted, atol=1e-6, rtol=1e-5)
        # It is the file's UNet, not the folder's: with twice its last layer, it predicts twice as much.
        twice = prediction(load_prior(doubled, dtype=torch.float32, config=folder))
        torch.testing.assert_close(twice, 2 * wanted, atol=1e-6, rtol=1e-5)
    # A Stable Diffusion in a file takes no cameras: the weights of a port are not taken in its stead.
    plain = {name: x for name, x in tensors.items() if "camera_embed" not in name}
    save_file(plain, tmp_path / "plain.safetensors")
    said = error_of(tmp_path / "plain.safetensors", config=tmp_path / "one")
    assert "plain.safetensors takes no cameras, and the settings in" in said and "multi-view model" in said
    # Beside diffusers' own settings, cameras' layers in a folder of their own are another model's.
    prior = load_prior(tmp_path / "plain.safetensors", dtype=torch.float32, config=tmp_path / "two")
    assert prior.views == 1 and prior.network.class_embedding is None
    x = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    cond = prior.embed(["a mug"] * 4)["encoder_hidden_states"]
    bare = {**dict(network.config), "class_embed_type": None, "projection_class_embeddings_input_dim": None}
    alone = type(network).from_config(bare)
    alone.load_state_dict(
        {name: x for name, x in network.state_dict().items() if "class_embedding" not in name}
    )
    own = alone.eval()(x, torch.full((4,), 300), cond).sample
    found = prior.predict_noise(x, torch.full((4,), 300), {"encoder_hidden_states": cond})
    torch.testing.assert_close(found, own, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("left", ["empty", "pickled", "gone"])
def test_a_ports_layers_for_cameras_are_looked_for(left: str, network: Any, tmp_path: Path) -> None:
    folder = other_port(tmp_path / "two", network)
    weights = folder / "camera_proj/diffusion_pytorch_model.safetensors"
    if left == "pickled":
        torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    if left == "gone":
        (folder / "camera_proj/config.json").unlink()
        (folder / "camera_proj").rmdir()
    said = error_of(folder)
    if left == "pickled":
        assert (
            "has pickled weights (camera_proj/diffusion_pytorch_model.bin)" in said
            and "distill.convert" in said
        )
    else:
        assert f"has no weights in {folder / 'camera_proj'} (*.safetensors)" in said
    # An index that says there is none is one of single pictures.
    index = folder / "model_index.json"
    if left == "gone":
        index.write_text(json.dumps({**json.loads(index.read_text()), "camera_proj": [None, None]}))
        assert load_prior(folder).views == 1


def test_heads_are_counted_or_divided() -> None:
    """LDM's rule: ``num_head_channels`` channels each, or with -1 ``num_heads`` of them at every width."""
    assert settings_of_unet(SAID, "x")["attention_head_dim"] == [2, 4]
    counted = settings_of_unet({**SAID, "num_head_channels": -1, "num_heads": 8}, "x")
    assert counted["attention_head_dim"] == [8, 8]
    for wrong in (
        {"num_head_channels": -1},
        {"num_head_channels": 48},
        {"num_head_channels": -1, "num_heads": 5},
    ):
        with pytest.raises(ValueError, match=r"x must have the settings .*'num_head.*' is missing or wrong"):
            settings_of_unet({**SAID, **wrong}, "x")


def test_what_is_not_mvdream_gets_one_line(network: Any, tmp_path: Path) -> None:
    assert "given cameras by 16 numbers, got camera_dim=12" in error_of(
        port(tmp_path / "b", network, camera_dim=12)
    )
    assert "'channel_mult' is missing or wrong" in error_of(
        _without(port(tmp_path / "c", network), "channel_mult")
    )
    broken = port(tmp_path / "d", network)
    weights = broken / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["camera_embed.2.bias"]
    save_file(tensors, weights)
    said = error_of(broken)
    assert "1 are missing, not known or of another shape, such as class_embedding.linear_2.bias" in said


def _without(folder: Path, setting: str) -> Path:
    path = folder / "unet/config.json"
    said = json.loads(path.read_text())
    del said[setting]
    path.write_text(json.dumps(said))
    return folder
