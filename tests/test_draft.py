"""A prior whose UNet is shown a draft of its caption: loaded as it was written, in every call, and refused where it is broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file

from distill.embedded.vocabulary import SHIPPED
from distill.priors import load_prior
from distill.priors.draft import Draft, channels_of

WIDTH, CHANNELS, SIZE = 128, 2, 8

FOLDER = SHIPPED["embedded"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The shipped prior's text side with a small UNet that takes two channels more."""
    torch.manual_seed(0)
    made = tmp_path / "prior"
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(FOLDER / part, made / part)
    UNet2DConditionModel(
        sample_size=SIZE, in_channels=3 + CHANNELS, out_channels=3, block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1, cross_attention_dim=WIDTH, attention_head_dim=2, norm_num_groups=4,
    ).save_pretrained(made / "unet")  # fmt: skip
    DDIMScheduler(prediction_type="v_prediction").save_pretrained(made / "scheduler")
    draft = Draft(WIDTH, CHANNELS, SIZE)
    torch.nn.init.normal_(draft.layer.weight, std=0.3)
    draft.write(made / "draft")
    index = json.loads((FOLDER / "model_index.json").read_text())
    (made / "model_index.json").write_text(json.dumps({**index, "draft": ["distill", "Draft"]}))
    return made


def test_the_network_sees_the_draft_of_its_caption_beside_the_picture(folder: Path) -> None:
    prior = load_prior(folder, dtype=torch.float32)
    assert not any(parameter.requires_grad for parameter in prior.network.parameters())
    assert prior.shape == (3, SIZE, SIZE) and prior.image_size == SIZE and channels_of(prior.network) == 3
    x, t = torch.randn(2, *prior.shape, generator=torch.Generator().manual_seed(1)), torch.tensor([500, 20])
    said = prior.embed(["a red mug", "a blue duck, front view"])
    states = said["encoder_hidden_states"]
    # By hand, from the files alone.
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    weights = {name: value.float() for name, value in load_file(folder / "draft/model.safetensors").items()}
    shown = states[:, -1] @ weights["layer.weight"].T + weights["layer.bias"]
    both = torch.cat([x, shown.view(2, CHANNELS, SIZE, SIZE)], dim=1)
    with torch.no_grad():
        wanted = unet(both, t, states).sample
        torch.testing.assert_close(prior.predict(x, t, said), wanted, atol=1e-5, rtol=1e-4)
        other = prior.predict(x, t, prior.embed(["a red duck", "a blue duck, front view"]))
    assert not torch.allclose(other[0], wanted[0], atol=1e-2)
    torch.testing.assert_close(other[1], wanted[1], atol=1e-5, rtol=1e-4)


def test_halves_of_a_batch_are_each_shown_their_own_draft(folder: Path) -> None:
    prior = load_prior(folder, dtype=torch.bfloat16)
    x, t = torch.randn(2, *prior.shape, generator=torch.Generator().manual_seed(1)), torch.tensor([500, 500])
    said = prior.embed(["a red mug", "a blue duck"])
    both = prior.predict(x, t, said)
    for row in (0, 1):
        alone = {name: value[row : row + 1] for name, value in said.items()}
        torch.testing.assert_close(
            both[row : row + 1], prior.predict(x[row : row + 1], t[:1], alone), atol=0.05, rtol=0.05
        )


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (shutil.rmtree, "lacks .*draft"),
        (lambda draft: (draft / "model.safetensors").unlink(), "has no weights in"),
        (lambda draft: (draft / "model.safetensors").write_bytes(b"12"), "model.safetensors"),
        (lambda draft: Draft(WIDTH, 1, SIZE).write(draft), "does not fit"),
        (lambda draft: Draft(64, CHANNELS, SIZE).write(draft), "does not fit"),
        (lambda draft: Draft(WIDTH, CHANNELS, 4).write(draft), "does not fit"),
    ],
)  # fmt: skip
def test_a_draft_that_is_missing_or_of_another_prior_is_one_line(
    folder: Path, spoil: object, said: str
) -> None:
    assert callable(spoil)
    spoil(folder / "draft")
    with pytest.raises(ValueError, match=said) as caught:
        load_prior(folder)
    assert "\n" not in str(caught.value)
