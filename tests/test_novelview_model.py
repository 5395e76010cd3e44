"""Novel views: encoders against transformers' own outputs, and conditioning that starts as nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from distill.priors.novel_view.features import Encoder, Features, TokenHead, load_encoder, spread_layers
from distill.priors.novel_view.model import Amalgamation, PoseToken, build, draw_dropout, widen


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def write_encoder(folder: Path, kind: str) -> Path:
    import transformers

    shared = {
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 7,
    }
    torch.manual_seed(0)
    if kind == "dinov2":
        model: Any = transformers.Dinov2Model(transformers.Dinov2Config(**shared))
    elif kind == "registers":
        config = transformers.Dinov2WithRegistersConfig(**shared, num_register_tokens=3)
        model = transformers.Dinov2WithRegistersModel(config)
    else:
        clip = transformers.CLIPVisionConfig(**shared, intermediate_size=32, projection_dim=12)
        model = transformers.CLIPVisionModelWithProjection(clip)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(params=["dinov2", "registers", "clip"])
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> Encoder:
    return load_encoder(write_encoder(tmp_path, request.param))


def test_features_are_the_chosen_layers_without_the_prefix(encoder: Encoder) -> None:
    rgb = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    found = encoder(rgb)
    assert encoder.grid == 4
    assert found.maps.shape == (2, 16, encoder.map_width) == (2, 16, 4 * 16)
    assert found.token.shape == (2, encoder.token_width)
    out = encoder.model(pixel_values=encoder.preprocess(rgb), output_hidden_states=True)
    if hasattr(out, "image_embeds"):
        assert torch.equal(found.token, out.image_embeds)
        assert torch.equal(found.maps[..., -16:], out.hidden_states[4][:, 1:])
    else:
        # The last layer through the final norm is the model's own output.
        last = out.last_hidden_state
        torch.testing.assert_close(found.token, last[:, 0])
        torch.testing.assert_close(found.maps[..., -16:], last[:, encoder.prefix :])
    torch.testing.assert_close(encoder(rgb[1:]).maps, found.maps[1:], rtol=1e-4, atol=1e-5)


def test_a_head_makes_the_token_of_the_last_patches_and_leaves_the_maps(tmp_path: Path) -> None:
    plain = load_encoder(write_encoder(tmp_path, "registers"), layers=[2])
    torch.manual_seed(1)
    head = TokenHead(16, 4, patch_width=3, hidden=5)
    rgb = torch.rand(2, 3, 28, 28)
    replace(plain, head=head).save(tmp_path)
    again = load_encoder(tmp_path, layers=[2])
    before, after = plain(rgb), again(rgb)
    assert torch.equal(before.maps, after.maps) and not torch.allclose(before.token, after.token)
    patches = plain.model(pixel_values=plain.preprocess(rgb)).last_hidden_state[
        :, 4:
    ]  # class token, three registers
    even = (patches - patches.mean(-1, keepdim=True)) / (
        patches.var(-1, unbiased=False, keepdim=True) + 1e-5
    ).sqrt()
    inner = (even @ head.projection.weight.T + head.projection.bias).flatten(1)
    w = head.state_dict()
    hidden = nn.functional.gelu(inner @ w["layers.0.weight"].T + w["layers.0.bias"])
    torch.testing.assert_close(after.token, hidden @ w["layers.2.weight"].T + w["layers.2.bias"])
    assert again.token_width == 16 and again.id != plain.id
    write_encoder(tmp_path / "wider", "dinov2")
    save_file({"projection.weight": torch.zeros(2, 9)}, tmp_path / "wider" / "token.safetensors")
    with pytest.raises(ValueError, match="token's weights for 4 x 4 patches of 16 numbers"):
        load_encoder(tmp_path / "wider")


def test_pictures_are_resized_whole_and_normalised(encoder: Encoder) -> None:
    assert encoder.preprocess(torch.full((1, 3, 64, 48), 0.5)).shape == (1, 3, 28, 28)
    grey = encoder.preprocess(torch.full((1, 3, 28, 28), 0.5))
    for channel in range(3):
        expected = (0.5 - encoder.mean[channel]) / encoder.std[channel]
        assert grey[0, channel].mean().item() == pytest.approx(expected, abs=1e-5)


def test_layers_are_spread_from_shallow_to_deep() -> None:
    assert spread_layers(24) == (6, 12, 18, 24)
    assert spread_layers(4) == (1, 2, 3, 4)


def test_wrong_encoders_get_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"encoder must be the folder of an image encoder of transformers \(dinov2, .*\), and .*nowhere has no",
    ):
        load_encoder(tmp_path / "nowhere")
    folder = write_encoder(tmp_path / "good", "dinov2")
    with pytest.raises(ValueError, match="has layers 0 to 4, got 5"):
        load_encoder(folder, layers=[1, 5])
    weights = load_file(folder / "model.safetensors")
    save_file(
        {f"other.{name}": w for name, w in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ValueError, match=rf"good lacks {len(weights)} weights \(.*save it again"):
        load_encoder(folder)


def make_unet(channels: int = 3) -> Any:
    torch.manual_seed(1)
    return UNet2DConditionModel(
        sample_size=16, in_channels=channels, out_channels=channels, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8, 16, 16), cross_attention_dim=12, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip


FEATURES = Features(randn(2, 2, 12), randn(3, 2, 16, 20))
POSE = randn(4, 2, 4)
X, T, LATENT = randn(5, 2, 3, 16, 16), torch.tensor([10, 900]), randn(6, 2, 3, 16, 16)


def test_a_widened_unet_with_untrained_maps_is_the_old_unet_bit_for_bit() -> None:
    unet = make_unet()
    token = PoseToken(12, 12, norm=False)
    with torch.no_grad():
        expected = unet(X, T, encoder_hidden_states=token(FEATURES.token, POSE)).sample
        model = build(widen(make_unet()), token_width=12, map_width=20, grid=4)
        model.token = token
        assert torch.equal(model(X, T, LATENT, FEATURES, POSE), expected)
        # Any map that is not zero changes the picture, at every depth.
        assert model.amalgamation is not None
        for first, last in ((0, 8), (8, 24), (24, 40)):
            model.amalgamation.projection.weight.zero_()
            model.amalgamation.projection.weight[first:last] = 0.1
            assert not torch.equal(model(X, T, LATENT, FEATURES, POSE), expected)


def test_a_widened_unet_saves_and_loads(tmp_path: Path) -> None:
    unet = widen(make_unet())
    unet.save_pretrained(tmp_path)
    again = UNet2DConditionModel.from_pretrained(tmp_path)
    assert again.config.in_channels == 6
    assert torch.equal(again.conv_in.weight, unet.conv_in.weight)


def test_dropped_samples_get_nothing_of_what_is_dropped() -> None:
    model = build(widen(make_unet()), token_width=12, map_width=20, grid=4)
    assert model.amalgamation is not None
    with torch.no_grad():
        for parameter in (model.amalgamation.projection.weight, model.unet.conv_in.weight):
            parameter.copy_(randn(7, *parameter.shape) * 0.1)
        keep = torch.tensor([1.0, 0.0])
        whole = model(X, T, LATENT, FEATURES, POSE)
        dropped = model(X, T, LATENT, FEATURES, POSE, keep, keep)
        torch.testing.assert_close(dropped[0], whole[0])
        other = Features(randn(8, 2, 12), randn(9, 2, 16, 20))
        again = model(X, T, randn(10, 2, 3, 16, 16), other, randn(11, 2, 4), keep, keep)
        torch.testing.assert_close(again[1], dropped[1])
        assert not torch.allclose(whole[1], dropped[1], atol=1e-3)


def test_maps_are_resized_as_stated() -> None:
    layer = Amalgamation(20, 4, (2, 3, 5), (8, 4, 2))
    with torch.no_grad():
        layer.projection.weight.copy_(randn(0, 10, 20))
        found = layer(FEATURES.maps)
        drawn = layer.projection(layer.norm(FEATURES.maps)).movedim(1, 2).reshape(2, 10, 4, 4)
    assert [part.shape for part in found] == [(2, 2, 8, 8), (2, 3, 4, 4), (2, 5, 2, 2)]
    torch.testing.assert_close(found[0], interpolate(drawn[:, :2], (8, 8), mode="bilinear"))
    torch.testing.assert_close(found[1], drawn[:, 2:5])
    # Area: the mean of each two by two.
    torch.testing.assert_close(found[2], drawn[:, 5:].unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean((3, 5)))
    with pytest.raises(ValueError, match="expected maps of 4 x 4 patches, got 9 patches"):
        layer(torch.zeros(1, 9, 20))


def test_one_token_makes_cross_attention_a_constant() -> None:
    """Softmax over one token is 1: the layer's output is to_out(to_v(token)) at every place, whatever it asks."""
    unet = make_unet()
    attention = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    token = PoseToken(12, 12, norm=True)(FEATURES.token, POSE)
    asked = randn(12, 2, 64, 8)
    with torch.no_grad():
        expected = attention.to_out[0](attention.to_v(token)).expand(2, 64, 8)
        torch.testing.assert_close(attention(asked, encoder_hidden_states=token), expected)


def test_the_token_starts_as_the_pictures_own() -> None:
    projection = PoseToken(12, 12, norm=False)
    with torch.no_grad():
        found = projection(FEATURES.token, torch.zeros(2, 4))
    torch.testing.assert_close(found[:, 0], FEATURES.token)


def test_dropout_has_the_published_shares() -> None:
    token, latent = draw_dropout(200_000, torch.Generator().manual_seed(0))
    shares = {
        (True, True): 0.85, (False, True): 0.05, (False, False): 0.05, (True, False): 0.05
    }  # fmt: skip
    for (keeps_token, keeps_latent), share in shares.items():
        found = ((token == keeps_token) & (latent == keeps_latent)).double().mean().item()
        # Four standard deviations of a share of 200,000 draws are at most 0.0032.
        assert found == pytest.approx(share, abs=0.0035)


def test_a_unet_that_is_not_widened_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a UNet with 6 input channels .* got 3; widen it first"):
        build(make_unet(), token_width=12)
