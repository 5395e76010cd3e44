"""What encoders see, and the judge's eye as one of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_novelview_model import write_encoder
from torch.nn.functional import normalize

from distill.embedded.judge import SHIPPED, ImageTower, load_judge
from distill.lab.novel_view.cli import main
from distill.lab.novel_view.inspect import layers_of, mutual_matches, principal_components
from distill.priors.novel_view.features import load_encoder


def test_components_are_the_directions_of_most_variance() -> None:
    strong, weak = torch.tensor([0.6, 0.8, 0.0]), torch.tensor([-0.8, 0.6, 0.0])
    along = torch.tensor([[-1.0, 1, -1, 1], [-2, 2, -2, 2]])
    across = torch.tensor([[0.1, 0.1, -0.1, -0.1], [0.1, 0.1, -0.1, -0.1]])
    found = principal_components(along[..., None] * strong + across[..., None] * weak + 5, 2)
    torch.testing.assert_close(found[..., 0], (along + 2) / 4)
    # The weak direction's largest part is negative, so its sign is turned.
    torch.testing.assert_close(found[..., 1], (across.neg() + 0.1) / 0.2, atol=1e-4, rtol=0)


def test_matches_are_mutual_and_best_first() -> None:
    one = torch.tensor([[1.0, 0], [0, 1], [0.9, 0.1]])
    other = torch.tensor([[0.0, 2], [3, 0.2], [-1, 0]])
    found = mutual_matches(one, other)
    # The first and the third both like the second best, which likes the third: (0.9, 0.1) . (3, 0.2) is the larger.
    assert [(i, j) for i, j, _ in found] == [(1, 0), (2, 1)]
    assert found[0][2] == pytest.approx(1.0)
    assert mutual_matches(one, other, torch.tensor([True, False, False])) == []


def test_layers_come_apart_as_they_were_joined(tmp_path: Path) -> None:
    encoder = load_encoder(write_encoder(tmp_path / "dinov2", "dinov2"), layers=[1, 3])
    rgb = torch.rand(2, 3, 16, 16)
    for number, layer in enumerate(encoder.layers):
        alone = load_encoder(tmp_path / "dinov2", layers=[layer])
        torch.testing.assert_close(layers_of(encoder, rgb)[number], alone(rgb).maps)


def test_the_sheet_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_encoder(tmp_path / "dinov2", "dinov2")
    for number in range(2):
        picture = np.full((32, 32, 3), 255, np.uint8)
        picture[8:24, 4 + 8 * number : 20 + 8 * number] = (200, 60, 20)
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    pictures = [str(tmp_path / f"{number}.png") for number in range(2)]
    with pytest.raises(SystemExit) as caught:
        main(
            ["features", str(tmp_path / "dinov2"), *pictures, str(tmp_path / "out.png"), "--layers", "2", "4"]
        )
    assert caught.value.code == 0
    assert "2 pictures, 2 layers" in capsys.readouterr().out
    assert Image.open(tmp_path / "out.png").size == (3 * 192, 3 * 192)


def test_the_judges_eye_is_an_encoder(tmp_path: Path) -> None:
    encoder, judge, rgb = load_encoder(SHIPPED["embedded"]), load_judge(), torch.rand(2, 3, 64, 64)
    found = encoder(rgb)
    torch.testing.assert_close(normalize(found.token, dim=1), judge.image_features(rgb))
    assert found.maps.shape == (2, 64, 48 + 96 + 192 + 192)
    assert (encoder.token_width, encoder.map_width, encoder.grid) == (128, 528, 8)
    # The last stage's four by four cells each stand for two by two patches.
    last = found.maps[..., -192:].unflatten(1, (4, 2, 4, 2))
    torch.testing.assert_close(last, last[:, :, :1, :, :1].expand_as(last))
    ImageTower(judge).save_pretrained(tmp_path / "image_encoder")
    again = load_encoder(tmp_path / "image_encoder", layers=[4])
    torch.testing.assert_close(again(rgb).maps, found.maps[..., -192:], rtol=1e-2, atol=1e-2)
