"""Image to 3D: from a picture to files, its elevation given or found, with text, and with wrong input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_novelview_model import randn
from test_novelview_pipeline import make
from test_run import QUICK, command, error_of

import distill
from distill.cameras import turntable
from distill.conditions.picture import Picture, look_at
from distill.contracts import Step
from distill.embedded.prompt import named_by
from distill.guidance.mix import mix
from distill.guidance.sds import sds
from distill.loop import step
from distill.priors.novel_view.pipeline import NovelViewPipeline
from distill.priors.novel_view.pose import relative_cameras
from distill.run.assembly.assemble import assemble
from distill.run.config.compose import compose_config

PICTURE = ["image=p.png", "novel_view=model", *QUICK]
GIVEN = [*PICTURE, "reference.elevation_deg=20"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "parts", latent=False).save(tmp_path / "model")
    picture = np.full((48, 48, 3), 255, np.uint8)
    picture[12:36, 16:40] = (200, 40, 30)
    Image.fromarray(picture).save(tmp_path / "p.png")


def test_a_picture_becomes_an_asset_with_the_reference_beside_the_render(tmp_path: Path) -> None:
    assert command(*GIVEN, "output_dir=out") == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"mesh.glb", "contact.png", "turntable.mp4", "report.html", "reference.png"} <= names
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["picture"]["file"] == "p.png"
    assert manifest["picture"]["elevation_deg"] == 20
    assert manifest["picture"]["elevation"] == "given"
    assert manifest["prior"]["name"] == "model"
    assert "unet/diffusion_pytorch_model.safetensors" in manifest["prior"]["sha256"]
    beside = np.asarray(Image.open(tmp_path / "out" / "reference.png"))
    assert beside.shape == (32, 64, 3)
    assert beside[16, 16, 0] > 180 > 80 > beside[16, 16, 2]
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert {"reference_rgb", "reference_mask"} <= lines[0].keys()
    assert "The picture" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_without_an_elevation_it_is_estimated_and_told(tmp_path: Path) -> None:
    assert command(*PICTURE, "export.enabled=false") == 0
    (folder,) = (tmp_path / "outputs").iterdir()
    assert folder.name.startswith("p-")
    picture = json.loads((folder / "manifest.json").read_text())["picture"]
    assert picture["elevation"] == "estimated"
    fits = picture["elevation_fits"]
    best = max(fits, key=lambda angle: fits[angle])
    assert abs(picture["elevation_deg"] - float(best)) <= 5


@pytest.mark.parametrize(
    ("words", "told"),
    [([], True), (["prompt='a red mug'"], False), (["novel_view=model"], False)],
)
def test_without_a_name_the_bundled_model_says_that_one_helps(
    words: list[str], told: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: Any, **__: Any) -> None:
        raise InterruptedError

    monkeypatch.setattr(NovelViewPipeline, "load", loaded)
    with caplog.at_level("INFO"), pytest.raises(InterruptedError):
        look_at(compose_config(["image=p.png", *words]), torch.device("cpu"))
    assert (
        "a prompt with the object's name helps, if 'distill priors things' lists it" in caplog.text
    ) is told


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("traffic_cone.png", "a traffic cone"),
        ("Electric-Guitar 2.JPG", "an electric guitar"),
        ("IMG_2041.png", None),
        ("photo.png", None),
        ("screenshot of a dragon.png", None),
        ("cat and dog.png", None),
        ("...png", None),
    ],
)
def test_a_picture_s_file_may_name_what_it_shows(file: str, name: str | None) -> None:
    assert named_by(Path("pictures") / file) == name


@pytest.mark.slow
def test_text_may_be_added_and_other_losses_taken(tmp_path: Path) -> None:
    assert command("a red mug", *GIVEN, "export.enabled=false") == 0
    terms = "guidance.terms=[{loss:sds,scale:2,weight:0.5},{loss:csd,prior:novel_view}]"
    assert command("a red mug", *GIVEN, "guidance=mix", terms, "export.enabled=false") == 0
    config = compose_config(["prompt='a red mug'", *GIVEN])
    assert [(term.loss, term.get("prior")) for term in config.guidance.terms] == [
        ("sds", "novel_view"),
        ("sds", None),
    ]
    for loss in ("csd", "asd", "ism"):
        assert command(*GIVEN, f"guidance={loss}", "export.enabled=false", f"output_dir={loss}") == 0
    asset = distill.generate(
        "", image="p.png", novel_view="model", iterations=2, output_dir="mine",
        **{"reference.elevation_deg": 20, "export.enabled": False},
    )  # fmt: skip
    assert asset.manifest["picture"]["elevation_deg"] == 20


@pytest.mark.parametrize("loss", ["sdi", "nfsd", "hifa", "vsd", "tp_sds"])
def test_every_loss_that_needs_no_words_makes_a_step_from_a_picture(loss: str) -> None:
    job = assemble(compose_config([*GIVEN, f"guidance={loss}"]))
    before = [p.detach().clone() for p in job.state.parameters()]
    seen, metrics = step(job)
    assert np.isfinite(metrics["grad_norm"])
    assert seen.grad.abs().sum() > 0
    assert any(not torch.equal(one, other) for one, other in zip(before, job.state.parameters(), strict=True))
    assert ("learner_loss" in metrics) is (loss == "vsd")


@pytest.mark.slow
def test_each_model_has_the_noise_levels_that_suit_it() -> None:
    own, other = (compose_config(["image=p.png", f"novel_view={name}"]) for name in ("embedded", "model"))
    assert (own.timesteps.t_min, own.timesteps.t_min_end, own.timesteps.t_max_end) == (0.6, 0.02, 0.4)
    assert (other.timesteps.t_min, other.timesteps.t_min_end) == (0.4, 0.2)
    assert own.scene.background == other.scene.background == "white"
    assert compose_config(["image=p.png", "preset=none", "guidance=sds"]).timesteps.t_min == 0.02


@pytest.mark.slow
def test_a_pictures_gradient_is_its_models_at_the_scale_of_the_preset() -> None:
    """w (e_u + 3 (e_c - e_u) - eps), by the pipeline's own guidance; words add 0.3 of their own."""
    job = assemble(compose_config(GIVEN))
    assert isinstance(job.picture, Picture)
    model = job.picture.prior
    assert job.prior is model
    cameras, t = turntable(2), torch.tensor([300, 700])
    x, noise = 0.5 * randn(1, 2, 3, 16, 16).clamp(-1, 1), randn(2, 2, 3, 16, 16)
    pose = relative_cameras(model.reference, cameras)
    a, s = model.alpha(t), model.sigma(t)
    guided = model.pipeline.predict_noise(a * x + s * noise, t, model.given, pose, 3.0)
    found = job.guidance(model, x, job.condition(cameras, Step()), t, noise)
    torch.testing.assert_close(found, s**2 * (guided - noise), rtol=1e-3, atol=1e-4)

    both = assemble(compose_config(["prompt='a red mug'", *GIVEN]))
    assert isinstance(both.picture, Picture)
    text, model = both.prior, both.picture.prior
    assert text.words
    x, noise = 0.5 * randn(3, 2, *text.shape).clamp(-1, 1), randn(4, 2, *text.shape)
    cond = both.condition(cameras, Step())
    seen = mix(
        text,
        torch.Generator(),
        {"novel_view": model},
        terms=[{"loss": "sds", "prior": "novel_view", "scale": 3.0}],
    )
    expected = seen(text, x, cond, t, noise) + 0.3 * sds(text, x, cond, t, noise, scale=100.0)
    torch.testing.assert_close(both.guidance(text, x, cond, t, noise), expected)


@pytest.mark.slow
def test_an_interrupted_run_from_a_picture_goes_on(tmp_path: Path) -> None:
    from test_run import final_tensors

    assert command(*GIVEN, "output_dir=whole", "export.enabled=false") == 0
    assert command(*GIVEN, "output_dir=again", "export.enabled=false") == 0
    for path in (tmp_path / "again" / "checkpoints").glob("step-*6"):
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    for name in ("manifest.json", "report.html"):
        (tmp_path / "again" / name).unlink()
    assert command(*GIVEN, "output_dir=again", "export.enabled=false", "resume=true") == 0
    whole, again = final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "again")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.slow
def test_maps_are_read_with_their_picture(tmp_path: Path) -> None:
    grey = np.zeros((48, 48), np.uint8)
    grey[12:36, 16:40] = np.linspace(50, 250, 24).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "depth.png")
    Image.fromarray(np.full((48, 48, 3), (128, 128, 255), np.uint8)).save(tmp_path / "normal.png")
    maps = ["reference.depth=depth.png", "reference.normal=normal.png"]
    with pytest.raises(ValueError, match=r"reference\.depth=depth\.png would do nothing"):
        compose_config([*GIVEN, *maps])
    maps += ["penalties.reference_depth=10", "penalties.reference_normal=10"]
    config = compose_config([*GIVEN, *maps])
    seen = look_at(config, torch.device("cpu"))
    assert seen.prior.pipeline.fourth == "distance"
    polar = look_at(compose_config([*GIVEN, "reference.fourth=polar"]), torch.device("cpu")).prior
    # The camera is 20 degrees up, 70 from the pole, and stays at its distance.
    assert polar._pose(turntable(1, elevation_deg=20))[0, 3].item() == pytest.approx(
        math.radians(70), abs=1e-4
    )
    assert seen.reference.depth is not None
    assert seen.reference.normal is not None
    middle = seen.reference.depth[0, 8]
    assert middle[3] < middle[12]
    # Towards the camera, of unit length: 128 stands for just above 0.
    torch.testing.assert_close(
        seen.reference.normal[:, 8, 8], torch.tensor([0.0039, 0.0039, 1.0]), atol=1e-3, rtol=0
    )
    assert command(*GIVEN, *maps, "export.enabled=false", "output_dir=out") == 0


WRONG = [
    (["image=none.png", "novel_view=model"], "none.png is not there"),
    (["image=p.png", "novel_view=nowhere"], "a folder of a novel-view model, got 'nowhere'"),
    ([*GIVEN, "reference.fill=0"], "reference.fill must be a number in [0.1, 1], got 0"),
    (
        [*PICTURE, "reference.elevation_deg=95"],
        "reference.elevation_deg must be a number in [-90, 90] or null, got 95",
    ),
    ([*GIVEN, "scene.background=grey"], "scene.background must be white, got grey"),
    ([*GIVEN, "scene=image"], "needs a scene that has a shape, and ImageScene does not; leave it out"),
    ([*GIVEN, "guidance=mix"], "mixes a picture with text, or compares texts; add a prompt"),
    ([*GIVEN, "negative_prompt=blurry"], "is for a prior that knows words"),
    ([*GIVEN, "guidance=dds"], "mixes a picture with text, or compares texts"),
    (
        ["a red mug", *GIVEN, "guidance=mix", "guidance.terms=[{loss:dds,prior:novel_view}]"],
        "dds needs prompts, and novel_view knows none",
    ),
    ([*GIVEN, "penalties.reference_depth=1"], "needs reference.depth=FILE"),
    ([*GIVEN, "reference.depth=model/unet/config.json", "penalties.reference_depth=1"], "cannot be read"),
    ([*GIVEN, "particles=2"], "does not go with particles=2; leave out one of them"),
    (
        ["a red mug", *QUICK, "guidance=mix", "guidance.terms=[{loss:sds,prior:novel_view}]"],
        "names the model of an input picture, and there is none; add image=FILE",
    ),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG, ids=[said for _, said in WRONG])
def test_wrong_input_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert said in error_of(capsys, *arguments)
