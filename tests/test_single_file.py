"""Priors in a single file: the same weights as the folder's, and every way in which a file cannot be used."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from single_files import of_open_clip, of_unet, of_vae, tensors_of, wide_xl, write
from tiny_pipelines import make, unet
from torch import Tensor

import distill
from distill.doctor import inputs, the_prior
from distill.files.atomic import sha256
from distill.forecast.network import shadow
from distill.priors import load_prior
from distill.priors.header import KINDS, kind_of, shapes_of
from distill.priors.preset import preset_of
from distill.priors.source import find
from distill.priors.table import MODELS
from distill.run.config.compose import compose_config


def stable_diffusion_2() -> Any:
    """With OpenCLIP's text encoder, which predicts v."""
    return make("stable_diffusion_v")


def tensors_2(pipeline: Any) -> dict[str, Tensor]:
    text = of_open_clip(pipeline.text_encoder, "cond_stage_model.model.")
    return {**of_unet(pipeline.unet), **of_vae(pipeline.vae), **text}


MAKERS: dict[str, tuple[Callable[[], Any], Callable[[Any], dict[str, Tensor]]]] = {
    "1": (lambda: make("stable_diffusion"), tensors_of),
    "2": (stable_diffusion_2, tensors_2),
    "XL": (wide_xl, tensors_of),
}


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, ``prior``, and beside it the same as ``model.safetensors``."""
    folder = tmp_path_factory.mktemp("single")
    pipeline = make("stable_diffusion")
    pipeline.save_pretrained(folder / "prior")
    write(tensors_of(pipeline), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("version", list(MAKERS))
def test_a_file_is_the_same_prior_as_its_folder(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    make_pipeline, tensors = MAKERS[version]
    pipeline = make_pipeline()
    pipeline.save_pretrained(tmp_path / "prior")
    file = write(tensors(pipeline), tmp_path / "model.safetensors")
    settings = tmp_path / "settings"  # the published layout without its weights
    shutil.copytree(tmp_path / "prior", settings, ignore=shutil.ignore_patterns("*.safetensors"))
    options: dict[str, Any] = {"dtype": torch.float32, "image_size": 64}
    whole, one = load_prior(tmp_path / "prior", **options), load_prior(file, config=settings, **options)
    expected, found = whole.embed(["a red mug", ""]), one.embed(["a red mug", ""])
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([100, 900])
    assert torch.equal(one.predict_noise(x, t, found), whole.predict_noise(x, t, expected))
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(one.encode(picture), whole.encode(picture))
    assert torch.equal(one.decode(x), whole.decode(x))


def test_its_manifest_names_the_file_its_hash_and_its_settings(single: Path) -> None:
    file, settings = single / "model.safetensors", single / "prior"
    prior = load_prior(file, dtype=torch.float32, image_size=64, config=settings)
    assert prior.describe()["prior"] == {
        "name": str(file), "settings": str(settings), "sha256": {"model.safetensors": sha256(file)},
    }  # fmt: skip


def test_parts_that_the_file_lacks_are_the_folders(single: Path, tmp_path: Path) -> None:
    """A file as ComfyUI writes it: the network, and no more."""
    pipeline = make("stable_diffusion")
    file = write(of_unet(pipeline.unet), tmp_path / "network.safetensors")
    shutil.copytree(single / "prior", tmp_path / "prior")
    unet().save_pretrained(tmp_path / "prior" / "unet")  # another one, which is not taken
    options: dict[str, Any] = {"dtype": torch.float32, "image_size": 64}
    whole = load_prior(single / "prior", **options)
    one = load_prior(file, config=tmp_path / "prior", **options)
    x, t, cond = torch.ones(1, 4, 8, 8), torch.tensor([500]), one.embed(["a mug"])
    assert torch.equal(one.predict_noise(x, t, cond), whole.predict_noise(x, t, whole.embed(["a mug"])))
    said = one.describe()["prior"]["sha256"]
    assert sorted(said) == [
        "network.safetensors", "text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    shutil.rmtree(tmp_path / "prior" / "vae")
    settings = json.loads((single / "prior/vae/config.json").read_text())
    (tmp_path / "prior" / "vae").mkdir()
    (tmp_path / "prior" / "vae" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"network.safetensors has no vae; give a folder .*=FOLDER"):
        load_prior(file, config=tmp_path / "prior")


def test_embeddings_are_kept_by_what_the_file_holds(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    pipeline = make("stable_diffusion")
    tensors, file = tensors_of(pipeline), tmp_path / "model.safetensors"
    changed = {
        name: value + 0.1 * value.sin() if "cond_stage" in name and value.is_floating_point() else value
        for name, value in tensors.items()
    }
    states = []
    for content in (tensors, changed, tensors):
        write(content, file)
        made = load_prior(file, dtype=torch.float32, image_size=64, config=single / "prior")
        states.append(made.embed(["a mug"])["encoder_hidden_states"])
    assert torch.equal(states[0], states[2]) and not torch.allclose(states[0], states[1], atol=1e-3)
    assert len(list((tmp_path / "cache" / "text").iterdir())) == 2


@pytest.mark.parametrize("version", list(MAKERS))
def test_the_kind_and_its_preset_follow_from_the_files_head(version: str, tmp_path: Path) -> None:
    make_pipeline, tensors = MAKERS[version]
    file = write(tensors(make_pipeline()), tmp_path / "model.safetensors")
    assert preset_of(str(file)) == "latent"
    assert compose_config(["prompt=a mug", f"prior={file}"]).guidance.scale == 100.0
    known = {"1": "sd-1.5", "2": "sd-2.1", "XL": "sdxl"}
    assert kind_of(file, shapes_of(file)).known == known[version]


def test_every_kind_is_one_of_the_table() -> None:
    for kind in KINDS:
        assert MODELS[kind.known].pipeline == kind.pipeline
        assert kind_of(Path("x"), {f"model.diffusion_model.{kind.mark[0]}": ()}).pipeline == kind.pipeline


def test_doctor_and_a_forecast_read_it(single: Path) -> None:
    file = single / "model.safetensors"
    verdicts = {finding.name: finding for finding, _ in the_prior(str(file), str(single / "prior"))}
    assert verdicts["prior"].verdict == "ok" and str(file) in verdicts["prior"].said
    config = compose_config(["prompt=a mug", f"prior={file}", f"prior_options.config={single}/prior"])
    assert not [finding for finding in inputs(config) if finding.verdict == "wrong"]
    assert shadow(find(file, single / "prior"), torch.float32).shape == (4, 8, 8)


def test_a_run_from_a_file(single: Path, tmp_path: Path) -> None:
    asset = distill.generate(
        "a red mug", prior=single / "model.safetensors", scene="image", iterations=1, output_dir=tmp_path / "run",
        **{"prior_options.config": single / "prior", "log.tensorboard": False, "prior_options.image_size": 64},
    )  # fmt: skip
    assert asset.manifest["prior"]["sha256"] == {"model.safetensors": sha256(single / "model.safetensors")}


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 492265168\n")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def only(**tensors: Tensor) -> Callable[[Path], object]:
    return lambda path: write(tensors, path)


def inpainting(path: Path) -> None:
    write({**tensors_of(make("stable_diffusion")), **of_unet(unet(9, 4))}, path)


def wider(path: Path) -> None:
    write({**tensors_of(make("stable_diffusion")), **of_unet(unet(cross=24))}, path)


#: What is done to a file, and what is said.
HARM: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, r"there is no file .*model.safetensors"),
    "pointer": (pointer, r"model.safetensors is a pointer of Git LFS.*git lfs pull"),
    "cut": (cut, r"model.safetensors is cut short .*download the model again"),
    "empty": (lambda path: path.write_bytes(b""), r"model.safetensors is cut short"),
    "no safetensors": (lambda path: path.write_bytes(b"PK\x03\x04" * 100), r"no safetensors"),
    "a LoRA": (
        only(**{"lora_unet_x.lora_down.weight": torch.zeros(1)}),
        r"is a LoRA, not a model; give it as prior_options.loras=",
    ),
    "one part": (only(**{"down_blocks.0.weight": torch.zeros(1)}), "is one part of a model; give the folder"),
    "something else": (only(weight=torch.zeros(1)), "holds no model that is known as a single file"),
    "inpainting": (inpainting, r"takes 9 channels \(it is a model for inpainting\)"),
    "another's settings": (wider, r"does not fit the settings in .*unet: they are of another model"),
    "another kind": (
        only(**{"model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale": torch.zeros(1)}),
        r"has no unet such as the settings in .* are of",
    ),
}


@pytest.mark.parametrize("harm", list(HARM))
def test_a_file_that_cannot_be_used_is_one_line_before_anything_is_loaded(
    harm: str, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.safetensors"
    shutil.copy(single / "model.safetensors", file)
    do, said = HARM[harm]
    do(file)
    monkeypatch.setattr("distill.priors.load._parts", lambda *_: pytest.fail("loads before it looks"))
    with pytest.raises(ValueError, match=said) as caught:
        load_prior(file, config=single / "prior")
    assert "\n" not in str(caught.value)
    verdicts = {finding.name: finding for finding, _ in the_prior(str(file), str(single / "prior"))}
    assert verdicts["prior"].verdict == "wrong" and verdicts["prior"].said == str(caught.value)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin"])
def test_pickled_files_are_refused_with_the_remedy(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"model{suffix}"
    file.write_bytes(b"\x80\x02")
    with pytest.raises(ValueError, match=rf"is pickled.*python -m distill.convert {file}") as said:
        load_prior(file)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        (r"middle_block\.1", "lacks some of the weights of its unet; download the model again"),
        (r"encoder\.mid\.block_1", "lacks some of the weights of its vae"),
        (r"encoder\.layers\.1", "lacks 16 of its weights, such as .*layers.1."),
    ],
)
def test_weights_that_the_file_lacks_are_said(lacks: str, said: str, single: Path, tmp_path: Path) -> None:
    """Nothing is drawn at random instead."""
    tensors = tensors_of(make("stable_diffusion"))
    kept = {name: value for name, value in tensors.items() if not re.search(lacks, name)}
    assert 0 < len(kept) < len(tensors)
    file = write(kept, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=said) as caught:
        load_prior(file, dtype=torch.float32, config=single / "prior").embed(["a mug of its own"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("model.safetensors", "nowhere", r"config must be a folder .*nowhere has no model_index.json"),
        ("prior", "prior", r"config is for a prior in a single .safetensors file, and .* is none"),
    ],
)
def test_settings_that_cannot_be_used(name: str, settings: str, said: str, single: Path) -> None:
    with pytest.raises(ValueError, match=said):
        find(single / name, single / settings)


@pytest.mark.parametrize(
    ("mark", "said"), [("edm_mean", "Playground v2.5"), ("edm_vpred.sigma_max", "CosXL")]
)
def test_models_that_only_look_like_another_are_refused(mark: str, said: str) -> None:
    """They have the layers of Stable Diffusion XL, and other noise levels."""
    shapes: Any = {"model.diffusion_model.label_emb.0.0.weight": (), mark: ()}
    with pytest.raises(ValueError, match=f"x is {said}"):
        kind_of(Path("x"), shapes)
