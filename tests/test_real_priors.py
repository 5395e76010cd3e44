"""The whole main job on every family of priors, with every loss that applies: two steps, then an asset of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_pipelines import make

import distill
from distill.guidance import available
from distill.priors import encoders as loading
from distill.priors.diffusion import DiffusionPrior
from distill.priors.source import Source

#: One of each family, and the size of the pictures it is shown.
SIZES = {
    "stable_diffusion": 64,
    "stable_diffusion_xl": 64,
    "deepfloyd": 8,
    "pixart": 64,
    "stable_diffusion_3": 64,
    "flux": 64,
    "sana": 32,
}
QUICK: dict[str, Any] = {
    "iterations": 2, "render.size": 16, "render.batch": 1, "scene.log2_table_size": 10, "scene.levels": 2,
    "export.resolution": 16, "export.frames": 2, "export.picture_size": 16, "export.texture_size": 64,
    "export.faces": 100, "log.tensorboard": False, "log.preview_every": 0, "preset": "none",
}  # fmt: skip
#: What a loss needs beside a prompt.
MORE: dict[str, dict[str, Any]] = {
    "nfsd": {"negative_prompt": "ugly"},
    "dds": {"source_prompt": "a cup"},
    "bridge": {"source_prompt": "a cup"},
    "mix": {"guidance.terms": [{"loss": "sds", "weight": 1.0}, {"loss": "csd", "weight": 0.5}]},
}


@pytest.fixture(scope="module", params=list(SIZES))
def prior(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DiffusionPrior:
    folder = tmp_path_factory.mktemp(request.param)
    make(request.param).save_pretrained(folder)
    return distill.load_prior(folder, dtype=torch.float32, image_size=SIZES[request.param])


@pytest.mark.parametrize("loss", [name for name in available() if name != "novel_view"])
def test_an_asset_with_every_loss(prior: DiffusionPrior, loss: str, tmp_path: Path) -> None:
    # What is exported is a scene, whatever loss it was trained with.
    exported = loss == "sds"
    told = {"guidance": loss, **QUICK, "export.enabled": exported, **MORE.get(loss, {})}
    if loss == "vsd" and prior.family.network == "PixArtTransformer2DModel":
        with pytest.raises(ValueError, match="takes none in diffusers"):
            distill.generate("a red mug", prior=prior, output_dir=tmp_path / "run", **told)
        return
    asset = distill.generate("a red mug", prior=prior, output_dir=tmp_path / "run", **told)
    assert asset.manifest["prior"]["name"] == str(prior.source.folder)
    assert not exported or (tmp_path / "run" / "mesh.glb").stat().st_size > 0
    assert asset.manifest["skipped_steps"] == 0


@pytest.mark.parametrize("loss", ["sds", "csd", "vsd", "ism"])
def test_perp_neg_works_under_any_loss(prior: DiffusionPrior, loss: str, tmp_path: Path) -> None:
    if loss == "vsd" and prior.family.network == "PixArtTransformer2DModel":
        return
    told = {"guidance": loss, **QUICK, "export.enabled": False, "perp_neg.enabled": True, "render.batch": 3}
    asset = distill.generate("a red mug", prior=prior, output_dir=tmp_path / "run", **told)
    assert asset.manifest["skipped_steps"] == 0


def test_text_encoders_that_do_not_fit_the_device_stay_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("stable_diffusion_xl").save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    encoders = list(tmp_path.glob("text_encoder*/*.safetensors"))
    needed = sum(value.numel() * 4 for part in encoders for value in load_file(part).values())
    assert len(encoders) == 2
    for room, device in ((needed, "meta"), (needed - 1, "cpu")):
        monkeypatch.setattr(loading, "free_bytes", lambda device, room=room: room)
        pipeline = loading._load_text(
            Source(tmp_path, str(tmp_path)), index, torch.device("meta"), torch.float32
        )
        assert {pipeline.text_encoder.device.type, pipeline.text_encoder_2.device.type} == {device}
