"""Cached embeddings follow from what the files hold, whatever the file system says of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pipelines import make

from distill.files import atomic
from distill.files.atomic import sha256_once
from distill.priors import load_prior


def test_models_at_one_path_of_one_size_and_time_do_not_share_embeddings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They differ in one number in the middle of the file."""
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    make("stable_diffusion").save_pretrained(tmp_path / "prior")
    file = tmp_path / "prior/text_encoder/model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if name.endswith("layers.1.layer_norm1.bias"))
    sizes, states = set(), []
    for value in (0.0, 5.0, 0.0):
        weights[name][3] = value
        save_file(weights, file, {"format": "pt"})
        os.utime(file, (0, 0))
        sizes.add(file.stat().st_size)
        prior = load_prior(tmp_path / "prior", dtype=torch.float32)
        states.append(prior.embed(["a red mug"])["encoder_hidden_states"])
    assert len(sizes) == 1
    assert torch.equal(states[0], states[2]) and not torch.allclose(states[0], states[1], atol=1e-3)
    assert len(list((tmp_path / "cache/text").iterdir())) == 2


def test_a_file_is_read_once_per_process_as_long_as_it_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, plain = tmp_path / "a.safetensors", atomic.sha256
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return plain(path)

    monkeypatch.setattr(atomic, "sha256", counted)
    file.write_bytes(b"one")
    assert sha256_once(file) == sha256_once(file) == plain(file) and len(read) == 1
    (tmp_path / "link").symlink_to(file)
    assert sha256_once(tmp_path / "link") == plain(file) and len(read) == 1
    (tmp_path / "new").write_bytes(b"two")
    os.utime(tmp_path / "new", ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    (tmp_path / "new").replace(file)
    assert sha256_once(file) == plain(file) and len(read) == 2
