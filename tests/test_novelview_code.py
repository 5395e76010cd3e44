"""Novel views told by a code that turns: its rotation by hand, options that start as nothing, folders."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_novelview_model import FEATURES, LATENT, POSE, T, X, make_unet, randn, write_encoder
from test_novelview_pipeline import draw
from torch import Tensor

from distill.priors.novel_view.code import Draft, RotatedCode, TurnOptions, rotate
from distill.priors.novel_view.features import Features, load_encoder
from distill.priors.novel_view.model import NovelView, build, widen
from distill.priors.novel_view.pipeline import NovelViewPipeline
from distill.priors.novel_view.pose import between, differences, relative

SMALL = TurnOptions(tokens=3, film=True, draft=8, patch_width=4, hidden=16, pairs=(2, 2, 1))
FREQUENCIES = torch.tensor([0.0, 0, 1, 1, 2])
WIDTHS = (8, 12)


def make_turned(options: TurnOptions = SMALL, *, trained: bool = False) -> NovelView:
    unet = widen(make_unet(), draft=options.draft > 0)
    model = build(
        unet, token_width=12, map_width=20, grid=4, turn=options, layer_widths=WIDTHS
    ).eval()  # fmt: skip
    if trained:
        with torch.no_grad():
            for seed, parameter in enumerate(model.parameters()):
                parameter.add_(0.1 * randn(seed, *parameter.shape))
    return model


def test_a_pair_turns_in_its_plane() -> None:
    pairs = torch.tensor([[[1.0, 0.0]] * 5])
    turned = rotate(pairs, FREQUENCIES, torch.tensor([math.pi / 2]))
    # By 0, 0, 90, 90 and 180 degrees.
    expected = torch.tensor([[[1.0, 0], [1, 0], [0, 1], [0, 1], [-1, 0]]])
    torch.testing.assert_close(turned, expected, atol=1e-6, rtol=0)


def test_turns_add_up_and_a_full_one_is_none() -> None:
    pairs = randn(0, 4, 5, 2)
    one, other = torch.tensor([0.3, -1.0, 2.5, 3.0]), torch.tensor([1.1, 0.4, -2.0, 0.9])
    both = rotate(rotate(pairs, FREQUENCIES, one), FREQUENCIES, other)
    torch.testing.assert_close(both, rotate(pairs, FREQUENCIES, one + other))
    torch.testing.assert_close(rotate(rotate(pairs, FREQUENCIES, one), FREQUENCIES, -one), pairs)
    torch.testing.assert_close(
        rotate(pairs, FREQUENCIES, one + 2 * math.pi), rotate(pairs, FREQUENCIES, one), atol=1e-5, rtol=1e-5
    )
    # Lengths stay.
    torch.testing.assert_close(rotate(pairs, FREQUENCIES, one).norm(dim=-1), pairs.norm(dim=-1))


def test_a_pose_comes_apart_as_it_was_put_together() -> None:
    angles = torch.tensor([[0.3, 2.0], [-3.0, 3.0], [1.0, 1.0]])  # azimuths, condition and target
    heights = torch.tensor([[0.5, 1.0], [1.2, 0.2], [0.7, 0.7]])  # polar angles
    distance = torch.tensor([[3.0, 3.5], [3.2, 3.0], [3.0, 3.0]])

    def at(index: int) -> Tensor:
        polar, azimuth, r = heights[:, index], angles[:, index], distance[:, index]
        across = r * polar.sin()
        return torch.stack([across * azimuth.cos(), across * azimuth.sin(), r * polar.cos()], dim=1)

    pose = relative(at(0), at(1))
    polar, turn, last = differences(pose)
    torch.testing.assert_close(polar, heights[:, 1] - heights[:, 0])
    torch.testing.assert_close(turn, torch.tensor([1.7, 6.0 - 2 * math.pi, 0.0]), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(last, distance[:, 1] - distance[:, 0])
    assert torch.equal(between(at(0), at(1)), pose)


def test_turning_the_camera_turns_the_code_and_nothing_else_of_it() -> None:
    """Two turns in a row are one: the code of a pose is that of none with its pairs rotated."""
    torch.manual_seed(0)
    code = RotatedCode(WIDTHS, 4, SMALL)
    turn = torch.tensor([0.7, -2.0])
    pose = torch.stack([0 * turn, turn.sin(), turn.cos(), 0 * turn], dim=1)
    with torch.no_grad():
        pairs = rotate(code.pairs_of(FEATURES.maps), FREQUENCIES, turn).flatten(1)
        expected = code.mix(torch.cat([pairs, torch.zeros(2, 2)], dim=1))
        torch.testing.assert_close(code(FEATURES.maps, pose), expected)
        # The polar angle and the distance come in with weights of their own.
        pose[:, 0], pose[:, 3] = 0.5, 0.25
        expected = code.mix(torch.cat([pairs, torch.tensor([[1.0, 0.75]] * 2)], dim=1))
        torch.testing.assert_close(code(FEATURES.maps, pose), expected)


def test_layers_are_evened_out_apart() -> None:
    code = RotatedCode(WIDTHS, 4, SMALL)
    other = torch.cat([5 * FEATURES.maps[..., :8] + 2, FEATURES.maps[..., 8:]], dim=-1)
    torch.testing.assert_close(code.pairs_of(other), code.pairs_of(FEATURES.maps), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="expected maps of 4 x 4 patches, got 9 patches"):
        code(torch.zeros(1, 9, 20), POSE[:1])


def test_a_code_is_as_exact_under_autocast() -> None:
    code = RotatedCode(WIDTHS, 4, SMALL)
    with torch.autocast("cpu", torch.bfloat16):
        found = code(FEATURES.maps, POSE)
    assert torch.equal(found, code(FEATURES.maps, POSE))


@pytest.mark.parametrize(
    "options",
    [replace(SMALL, tokens=0, draft=0), replace(SMALL, tokens=0, film=False), replace(SMALL, tokens=0)],
)
def test_what_starts_at_zero_changes_nothing(options: TurnOptions) -> None:
    plain = build(widen(make_unet()), token_width=12, map_width=20, grid=4)
    turned = make_turned(options)
    assert plain.token is not None and turned.token is not None
    turned.token.load_state_dict(plain.token.state_dict())
    with torch.no_grad():
        assert torch.equal(
            turned(X, T, LATENT, FEATURES, POSE), plain(X, T, LATENT, FEATURES, POSE)
        )  # fmt: skip


def test_each_option_takes_part() -> None:
    model = make_turned(trained=True)
    assert model.turn is not None and model.turn.film is not None and model.turn.tokens is not None
    with torch.no_grad():
        whole = model(X, T, LATENT, FEATURES, POSE)
        for weight in (model.turn.film.weight, model.turn.tokens.weight, model.unet.conv_in.weight[:, 6:]):
            kept = weight.clone()
            weight.zero_()
            assert not torch.allclose(model(X, T, LATENT, FEATURES, POSE), whole, atol=1e-4)
            weight.copy_(kept)
        assert torch.equal(model(X, T, LATENT, FEATURES, POSE), whole)


def test_tokens_time_embedding_and_draft_are_dropped_together() -> None:
    model = make_turned(trained=True)
    none, all_of_it = torch.zeros(2), torch.ones(2)
    other = Features(FEATURES.token, randn(20, 2, 16, 20))
    with torch.no_grad():
        dropped = model(X, T, LATENT, FEATURES, POSE, none, all_of_it)
        # No pose tells anything any more; the maps that are added to the UNet still do.
        assert torch.equal(model(X, T, LATENT, FEATURES, -POSE, none, all_of_it), dropped)
        again = model(X, T, LATENT, other, -POSE, none, all_of_it)
        assert not torch.allclose(again, dropped, atol=1e-4)
        nothing = model(X, T, LATENT, FEATURES, POSE, none, none)
        assert torch.equal(model(X, T, -LATENT, other, -POSE, none, none), nothing)
        assert not torch.allclose(model(X, T, LATENT, FEATURES, POSE), dropped, atol=1e-4)


def test_a_draft_is_the_mean_and_what_the_code_adds() -> None:
    draft = Draft(16, 8)
    draft.mean.copy_(randn(1, 3, 8, 8))
    with torch.no_grad():
        draft.projection.weight.zero_()
        draft.projection.bias.fill_(0.5)
        torch.testing.assert_close(draft(randn(2, 2, 16)), (draft.mean + 0.5).expand(2, -1, -1, -1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [SMALL, replace(SMALL, tokens=0), replace(SMALL, film=False), replace(SMALL, draft=0)]
)
def test_a_saved_folder_draws_the_same(tmp_path: Path, options: TurnOptions) -> None:
    from diffusers import DDIMScheduler

    encoder = load_encoder(write_encoder(tmp_path / "dinov2", "dinov2"), layers=[2, 4])
    model = build(
        widen(make_unet(), draft=options.draft > 0), token_width=encoder.token_width, map_width=encoder.map_width,
        grid=encoder.grid, turn=options, layer_widths=encoder.map_widths,
    )  # fmt: skip
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.add_(0.02 * randn(seed, *parameter.shape))
        if model.turn is not None and model.turn.draft is not None:
            model.turn.draft.mean.copy_(randn(5, 3, 8, 8))
    pipeline = NovelViewPipeline(
        model.eval().requires_grad_(False), encoder, DDIMScheduler(clip_sample=False)
    )
    folder = pipeline.save(tmp_path / "saved")
    again = NovelViewPipeline.load(folder)
    assert torch.equal(draw(again), draw(pipeline))
    assert again.model.turn is not None and again.model.turn.options == options
    # The frequencies follow from the options and are not stored.
    assert "turn.code.frequencies" not in load_file(folder / "conditioning" / "model.safetensors")
    said = folder / "conditioning" / "config.json"
    found = json.loads(said.read_text())
    said.write_text(json.dumps({**found, "turn": {**found["turn"], "wings": 2}}))
    with pytest.raises(ValueError, match=r"says of its code what is not known: .*wings"):
        NovelViewPipeline.load(folder)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one of tokens, film and draft"):
        TurnOptions(0, False, 0)
    with pytest.raises(ValueError, match="must be positive"):
        TurnOptions(pairs=())
    with pytest.raises(
        ValueError, match=r"expected a UNet with 9 input channels .*draft\), got 6; widen it first"
    ):
        build(widen(make_unet()), token_width=12, grid=4, turn=SMALL, layer_widths=WIDTHS)
    with pytest.raises(ValueError, match="give the encoder some layers"):
        build(widen(make_unet(), draft=True), token_width=12, turn=SMALL)
    unet = widen(make_unet())
    unet.class_embedding = torch.nn.Embedding(3, 32)
    with pytest.raises(ValueError, match="has classes of its own"):
        build(unet, token_width=12, grid=4, turn=replace(SMALL, draft=0), layer_widths=WIDTHS)


def test_a_widened_input_is_widened_again_for_a_draft() -> None:
    unet = widen(make_unet())
    with torch.no_grad():
        unet.conv_in.weight.copy_(randn(0, *unet.conv_in.weight.shape))
    before = unet.conv_in.weight.clone()
    widen(unet, draft=True)
    assert unet.config.in_channels == 9
    assert torch.equal(unet.conv_in.weight[:, :6], before)
    assert not unet.conv_in.weight[:, 6:].any()
