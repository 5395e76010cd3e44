"""Losses that encoders are trained by, in closed form, and the names of pictures."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "examples" / "embedded"


@pytest.fixture
def clip(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("train_clip")


def test_pictures_are_named_by_their_code_points(clip: Any) -> None:
    assert clip.name_of("1f600") == ["grinning", "face"]
    assert clip.name_of("2764-fe0f-200d-1f525") == ["heavy", "black", "heart", "fire"]
    # Tones of skin, flags and what is no code point.
    assert [
        clip.name_of(stem) for stem in ("1f44b-1f3ff", "1f1e8-1f1ed", "1f3f4-e0067_e0062", "read-me")
    ] == [[]] * 4


def test_clips_loss_by_hand(clip: Any) -> None:
    images, temperature = torch.eye(2), torch.tensor(math.log(3.0))
    loss = clip.contrast(images, images, temperature, torch.eye(2, dtype=torch.bool))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-3)))
    # Two pictures of one name share the answer: half of it lies on each.
    shared = clip.contrast(images, images, temperature, torch.ones(2, 2, dtype=torch.bool))
    assert shared.item() == pytest.approx(math.log(1 + math.exp(-3)) + 1.5)


def test_the_tokens_loss_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    train_encoder = importlib.import_module("train_encoder")
    # Both pictures of an object agree, and the other object's two are orthogonal to them.
    loss = train_encoder.contrast(3 * torch.eye(2), torch.eye(2), temperature=0.5)
    assert loss.item() == pytest.approx(math.log(1 + 2 * math.exp(-2)))
