"""Another VAE than the prior's own, and another kind of prediction than its scheduler says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from single_files import of_vae, tensors_of, write
from tiny_pipelines import make, vae

import distill
from distill.doctor import beside
from distill.files.atomic import sha256
from distill.forecast.network import shadow
from distill.priors import load_prior
from distill.priors.load import read_scheduler
from distill.priors.source import Source, find, wanted
from distill.run.config.compose import compose_config

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``prior``, ``flow`` and ``pixels`` are models; ``other`` is a VAE of other weights and another scale."""
    folder = tmp_path_factory.mktemp("parts")
    make("stable_diffusion").save_pretrained(folder / "prior")
    make("stable_diffusion_3").save_pretrained(folder / "flow")
    make("deepfloyd").save_pretrained(folder / "pixels")
    torch.manual_seed(7)
    other = vae(scaling_factor=0.5)
    other.save_pretrained(folder / "other")
    other.save_pretrained(folder / "model" / "vae")
    write(of_vae(other, ""), folder / "other.safetensors")
    write(of_vae(other), folder / "prefixed.safetensors")
    shutil.copy(folder / "other" / WEIGHTS, folder / "new-names.safetensors")
    return folder


def load(root: Path, **options: Any) -> Any:
    return load_prior(root / "prior", dtype=torch.float32, image_size=64, **options)


@pytest.mark.parametrize(
    ("name", "scale"),
    [("other", 0.5), ("model", 0.5), ("other.safetensors", 0.18215), ("prefixed.safetensors", 0.18215),
     ("new-names.safetensors", 0.18215)],
)  # fmt: skip
def test_pictures_go_through_the_other_vae(name: str, scale: float, root: Path) -> None:
    """A folder's scale is its own; a file's, which says none, is that of the prior's settings."""
    from diffusers import AutoencoderKL

    other, prior = AutoencoderKL.from_pretrained(root / "other"), load(root, vae=root / name)
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        latent = other.encode(picture * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(prior.encode(picture), latent * scale, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(prior.encode(picture), load(root).encode(picture), atol=1e-3)
    file = root / name if name.endswith("safetensors") else root / name / ("vae" if name == "model" else "")
    hashes = {WEIGHTS: sha256(file / WEIGHTS)} if file.is_dir() else {name: sha256(file)}
    assert prior.describe()["vae"] == {"name": str(root / name), "sha256": hashes}
    empty = shadow(find(root / "prior"), torch.float32, vae=str(root / name)).space.vae
    assert empty is not None and empty.config.scaling_factor == scale


def lacking(path: Path) -> None:
    weights = load_file(path)
    save_file({name: x for name, x in weights.items() if "mid" not in name}, path, {"format": "pt"})


def small(path: Path, **changes: Any) -> None:
    said = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**said, **changes}))


#: What is done to a copy of a VAE, whether in a folder or a file, and what is said.
HARM: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("other.safetensors", Path.unlink, "there is no file"),
    "no folder": ("other", shutil.rmtree, r"a .safetensors file, or a hub id such as .*, and .* is none"),
    "pointer": (
        "other.safetensors",
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "is a pointer of Git LFS",
    ),
    "cut": ("other.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-9]), "is cut short"),
    "cut in a folder": (
        "other",
        lambda path: (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:-9]),
        "is cut short",
    ),
    "no weights": ("other", lambda path: (path / WEIGHTS).unlink(), "no weights in"),
    "no VAE": (
        "other.safetensors",
        lambda path: save_file({"weight": torch.zeros(1)}, path),
        "holds no VAE",
    ),
    "16 channels": (
        "other.safetensors",
        lambda path: write(of_vae(vae(16), ""), path),
        "has 16 latent channels, and this prior's network takes 4; give one for such a model",
    ),
    "16 channels in a folder": (
        "other",
        lambda path: vae(16).save_pretrained(path),
        "has 16 latent channels",
    ),
    "another kind": (
        "other",
        lambda path: small(path, _class_name="AutoencoderTiny"),
        "must be an AutoencoderKL for this prior, and .* is of the kind AutoencoderTiny",
    ),
    "another factor": (
        "other",
        lambda path: small(path, block_out_channels=[4, 8]),
        "makes pictures 2 times smaller, and this prior's own 8 times",
    ),
    "lacking": (
        "other",
        lambda path: lacking(path / WEIGHTS),
        "lacks .* of its weights, such as .*mid_block",
    ),
    "lacking in a file": ("other.safetensors", lacking, "lacks some of the weights of its vae"),
}


@pytest.mark.parametrize("harm", list(HARM))
def test_a_vae_that_cannot_be_used_is_one_line_before_the_network_is_loaded(
    harm: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import UNet2DConditionModel

    name, do, said = HARM[harm]
    path = tmp_path / name
    (shutil.copy if name.endswith("safetensors") else shutil.copytree)(root / name, path)
    do(path)
    fails = classmethod(lambda *_, **__: pytest.fail("loads before it looks"))
    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", fails)
    with pytest.raises(ValueError, match=said) as caught:
        load(root, vae=path)
    assert "\n" not in str(caught.value)
    if not harm.startswith("lacking"):
        config = compose_config(["prompt=a mug", f"prior={root}/prior", f"prior_options.vae={path}"])
        (finding,) = beside(config, find(root / "prior"))
        assert (finding.verdict, finding.said) == ("wrong", str(caught.value))


def test_pickled_ones_and_priors_without_one_are_one_line(root: Path, tmp_path: Path) -> None:
    (tmp_path / "vae.ckpt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"is pickled.*python -m distill.convert"):
        load(root, vae=tmp_path / "vae.ckpt")
    with pytest.raises(ValueError, match="works on pixels and has no VAE"):
        load_prior(root / "pixels", vae=root / "other")


def test_of_a_repository_the_settings_and_safetensors_are_fetched() -> None:
    files = ["README.md", "config.json", WEIGHTS, "diffusion_pytorch_model.bin", "extra/config.json"]
    assert sorted(wanted("VAE", Path("config.json"), files)) == ["README.md", "config.json", WEIGHTS]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_noise_follows_from_the_kind_that_is_named(kind: str, root: Path) -> None:
    """By x_t = alpha x + sigma eps and v = alpha eps - sigma x."""
    prior, plain = load(root, prediction_type=kind), load(root)
    g = torch.Generator().manual_seed(2)
    x_t, t, cond = (
        torch.randn(2, 4, 8, 8, generator=g),
        torch.tensor([100, 800]),
        plain.embed(["a mug", "a cat"]),
    )
    output, alpha, sigma = plain.predict(x_t, t, cond), plain.alpha(t), plain.sigma(t)
    expected = {
        "epsilon": output,
        "v_prediction": alpha * output + sigma * x_t,
        "sample": (x_t - alpha * output) / sigma,
    }[kind]
    torch.testing.assert_close(prior.predict_noise(x_t, t, cond), expected, rtol=1e-4, atol=1e-4)
    assert prior.describe()["prediction_type"] == kind


def test_what_cannot_be_named_is_one_line(root: Path) -> None:
    with pytest.raises(
        ValueError, match="prediction_type must be one of epsilon, v_prediction, sample, got 'v'"
    ):
        load(root, prediction_type="v")
    with pytest.raises(ValueError, match="must be epsilon, v_prediction or sample or null, got 'v'"):
        compose_config(["prompt=a mug", "prior_options.prediction_type=v"])
    with pytest.raises(
        ValueError, match=r"FlowMatchEulerDiscreteScheduler, is a model of flow; leave it out"
    ) as said:
        load_prior(root / "flow", prediction_type="epsilon")
    options = ["prompt=a mug", f"prior={root}/flow", "prior_options.prediction_type=epsilon"]
    (finding,) = beside(compose_config(options), find(root / "flow"))
    assert (finding.verdict, finding.said) == ("wrong", str(said.value))


def test_a_file_may_say_that_it_predicts_v_down_to_pure_noise(root: Path, tmp_path: Path) -> None:
    """By empty tensors, as trainers of such models write them; rescaled, the last timestep has no signal."""
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    file = write({**tensors_of(make("stable_diffusion")), **marks}, tmp_path / "model.safetensors")
    options: dict[str, Any] = {"dtype": torch.float32, "image_size": 64, "config": root / "prior"}
    prior = load_prior(file, **options)
    assert prior.schedule.prediction == "v_prediction"
    root_abar = load(root).schedule.alpha  # first stays, last becomes 0 (arXiv:2305.08891, Sec. 3.1)
    first, last = root_abar[0], root_abar[-1]
    rescaled = (root_abar - last) * first / (first - last)
    torch.testing.assert_close(prior.schedule.alpha, rescaled[: len(prior.schedule)], rtol=1e-4, atol=1e-5)
    assert len(prior.schedule) == 999
    assert load_prior(file, prediction_type="epsilon", **options).schedule.prediction == "epsilon"


def test_settings_that_make_a_file_a_model_of_v_are_told(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tensors_of(make("stable_diffusion")), tmp_path / "model.safetensors")
    shutil.copytree(root / "prior", tmp_path / "prior")
    small_scheduler = tmp_path / "prior" / "scheduler" / "scheduler_config.json"
    said = json.loads(small_scheduler.read_text())
    small_scheduler.write_text(json.dumps({**said, "prediction_type": "v_prediction"}))
    caplog.set_level("INFO")
    for more, lines in (({}, 1), ({"prediction_type": "epsilon"}, 0)):
        caplog.clear()
        load_prior(file, dtype=torch.float32, config=tmp_path / "prior", **more)  # type: ignore[arg-type]
        assert (
            len(
                [
                    record
                    for record in caplog.records
                    if "treated as a model that predicts v" in record.message
                ]
            )
            == lines
        )


def test_a_run_records_both(root: Path, tmp_path: Path) -> None:
    asset = distill.generate(
        "a red mug", prior=root / "prior", scene="image", iterations=1, output_dir=tmp_path / "run",
        **{"prior_options.vae": root / "other", "prior_options.prediction_type": "v_prediction", "log.tensorboard": False,
           "prior_options.image_size": 64},
    )  # fmt: skip
    assert asset.manifest["prediction_type"] == "v_prediction" and asset.manifest["vae"]["name"] == str(
        root / "other"
    )
    scheduler = read_scheduler(Source(root / "prior", ""), {"scheduler": ["diffusers", "DDIMScheduler"]})
    assert scheduler.config.prediction_type == "epsilon"
