"""Where parts meet: every scene, alone and as particles, with everything that a prior is conditioned on, in every command.

A combination works, or is refused in one line that names the option and the remedy, before anything is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from scenes import spheres
from test_novelview_pipeline import make as make_novel_view
from tiny_pipelines import make

import distill
from distill.cli import main
from distill.contracts import Field, Prior, View
from distill.embedded.judge import Judge, load_judge
from distill.forecast.network import Forecast
from distill.lab.comparison import figures
from distill.lab.comparison.figures import gradient_profile
from distill.priors import load_prior

SMALL: dict[str, Any] = {
    "iterations": 2, "render.size": 16, "render.batch": 1, "log.tensorboard": False, "log.preview_every": 0,
    "log.checkpoint_every": 0, "device": "cpu",
}  # fmt: skip
SCENES: dict[str, dict[str, Any]] = {
    "hash_grid": {
        "scene.levels": 2, "scene.log2_table_size": 8, "scene.hidden_width": 8, "scene.occupancy_resolution": 8,
        "scene.march_steps": 24,
    },
    "image": {"scene.height": 16, "scene.width": 16},
    "surface": {"mesh.file": "toy.ply", "scene.levels": 2, "scene.log2_table_size": 8, "scene.hidden_width": 8},
    "spheres": {"scene.count": 20, "scene.radius": 0.2, "scene.background": "white"},
}  # fmt: skip
CONDITIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "perp_neg": {"perp_neg.enabled": True, "view_words": "four"},
    "control": {"prior_options.control": "depth"},
    "picture": {"image": "p.png", "novel_view": "novel_view", "reference.elevation_deg": 20},
}
COMMANDS = ("run", "compare", "doctor")
CASES = [
    (scene, particles, condition, how)
    for scene in SCENES
    for particles in (1, 2)
    for condition in CONDITIONS
    for how in COMMANDS
]


def refusal(scene: str, particles: int, condition: str, how: str) -> str | None:
    """The option and the remedy that a combination is refused with; None where it works."""
    flat = scene == "image"
    if flat and condition == "perp_neg":
        # The first option that is looked at.
        return r"view_words=four needs a scene that looks different from different sides.*leave it out"
    if flat and condition == "control":
        return r"prior_options.control=depth needs a scene that has a shape.*leave it out"
    if flat and condition == "picture":
        return r"image=p.png needs a scene that has a shape.*leave it out"
    if condition == "picture" and particles > 1:
        return r"image= makes one asset of the picture and does not go with (prompts|particles)="
    if scene in ("image", "surface") and how == "compare":
        return r"a comparison measures shapes.*choose one that fills space, such as scene=hash_grid"
    return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion, a ControlNet for it, a novel-view model and a picture."""
    from diffusers import ControlNetModel

    spheres()
    root = tmp_path_factory.mktemp("joints")
    pipeline = make("stable_diffusion")
    pipeline.save_pretrained(root / "prior")
    torch.manual_seed(1)
    ControlNetModel.from_unet(
        pipeline.unet, conditioning_embedding_out_channels=(4, 4, 8, 8)
    ).save_pretrained(root / "control")
    make_novel_view(root / "parts", latent=False).save(root / "novel_view")
    pixels = np.full((48, 48, 3), 255, np.uint8)
    pixels[12:36, 16:40] = (200, 40, 30)
    Image.fromarray(pixels).save(root / "p.png")
    trimesh.creation.cone(0.5, 1).export(root / "toy.ply")
    return root


@pytest.fixture(scope="module")
def priors(folder: Path) -> dict[str, Prior]:
    """The tiny prior without its ControlNet, and with."""
    options: dict[str, Any] = {"dtype": torch.float32, "image_size": 64}
    return {
        "plain": load_prior(folder / "prior", **options),
        "control": load_prior(folder / "prior", controlnet=folder / "control", **options),
    }


@cache
def judge() -> Judge:
    return load_judge()


@pytest.fixture(autouse=True)
def _quick(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder, and without what takes long and knows neither the scene nor what the prior is conditioned on."""
    from distill import doctor
    from distill.forecast import cost, network
    from distill.lab.comparison import run as comparison
    from distill.machine import Finding

    def some(view: View, field: Field, prompt: str, judge: Judge, source: Any) -> dict[str, Any]:
        density, colour = field(torch.zeros(1, 3))
        assert density.shape == (1,) and colour.shape == (1, 3)
        measured = (
            "iou",
            "variant",
            "variants",
            "offset_deg",
            "colour_error",
            "saturation",
            "true_saturation",
            "janus",
            "chamfer",
        )
        return {"r_precision": 0.0, "similarity": 0.0, **dict.fromkeys(measured, 0.5)}

    def counted(
        prior: Prior, rows: list[int], batch: int, *, rank: int = 0, updates: int = 1, decodes: bool = False
    ) -> Forecast:
        return Forecast(1, 2, 3, 0, 5 * sum(rows), 6)

    monkeypatch.chdir(folder)
    monkeypatch.setattr(doctor, "smoke", lambda device: Finding("step", "ok", ""))
    monkeypatch.setattr(network, "speed_of", lambda device, dtype: 1e9)
    monkeypatch.setattr(cost, "forecast", counted)
    monkeypatch.setattr(comparison, "judge_of", lambda *_: judge())
    monkeypatch.setattr(
        "distill.lab.comparison.cell.gradient_profile", partial(gradient_profile, levels=2, draws=2)
    )
    monkeypatch.setattr(figures, "measure", some)
    monkeypatch.setattr(figures, "judge_scores", lambda *given: {"r_precision": 0.0, "similarity": 0.0})


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    from distill.lab.comparison import run as comparison
    from distill.priors.novel_view.pipeline import NovelViewPipeline
    from distill.run.assembly import prior

    def loads(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("something was loaded before the options were refused")

    monkeypatch.setattr(prior, "load_prior", loads)
    monkeypatch.setattr(comparison, "judge_of", loads)
    monkeypatch.setattr(NovelViewPipeline, "load", loads)


def line(options: dict[str, Any]) -> list[str]:
    """Options as words of a command line."""
    texts = {True: "true", False: "false"}
    return [f"{name}={texts[value] if isinstance(value, bool) else value}" for name, value in options.items()]


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command says when it ends with exit code 2."""
    capsys.readouterr()
    assert command(*arguments) == 2
    said = capsys.readouterr().err
    lines = [text for text in said.splitlines() if text.startswith("distill: error:")]
    assert len(lines) == 1, said
    assert "Traceback" not in said
    return lines[0]


def options_of(scene: str, particles: int, condition: str, how: str) -> dict[str, Any]:
    options = {**SMALL, "scene": scene, **SCENES[scene], **CONDITIONS[condition]}
    if particles > 1:
        options["particles"] = particles
    if how == "compare":  # takes a loaded prior, and exports nothing
        return options
    options |= {"prior": "prior", "prior_options.image_size": 64} if condition != "picture" else {}
    if condition == "control":
        options["prior_options.controlnet"] = "control"
    return {**options, "export.enabled": False}


def compared(options: dict[str, Any], prior: Prior, folder: Path) -> Path:
    chosen = {name: value for name, value in options.items() if name != "iterations"}
    return distill.compare(
        {"one": chosen}, ["a red mug"], [0], output_dir=folder, prior=prior, iterations=2, measure_every=5
    )


@pytest.fixture
def expected(request: pytest.FixtureRequest) -> Iterator[str | None]:
    found = refusal(*request.param)
    if found:
        request.getfixturevalue("nothing_is_loaded")
    yield found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "expected"), [(case, case) for case in CASES], ids=["-".join(map(str, c)) for c in CASES], indirect=["expected"]
)  # fmt: skip
def test_a_combination_works_or_is_refused_in_one_line(
    case: tuple[str, int, str, str],
    expected: str | None,
    priors: dict[str, Prior],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, _, condition, how = case
    options = options_of(*case)
    if how == "compare":
        prior = priors["control" if condition == "control" else "plain"]
        if expected:
            with pytest.raises(ValueError, match=expected) as caught:
                compared(options, prior, tmp_path)
            assert "\n" not in str(caught.value)
        else:
            assert compared(options, prior, tmp_path).exists()
        return
    prompt = [] if condition == "picture" else ["prompt=a red mug"]
    arguments = [*prompt, *line(options)]
    if how == "doctor":
        arguments = ["doctor", *arguments]
    else:
        arguments.append(f"output_dir={tmp_path / 'run'}")
    if expected:
        assert re.search(expected, refused(capsys, *arguments))
        assert not (tmp_path / "run").exists()
        return
    assert command(*arguments) == 0, capsys.readouterr().err
    if how == "run":
        assert (tmp_path / "run" / "manifest.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("particles", [1, 2])
def test_everything_is_exported(scene: str, particles: int, tmp_path: Path) -> None:
    options = options_of(scene, particles, "plain", "run")
    exported = {
        "export.enabled": True,
        "export.texture_size": 64,
        "export.frames": 2,
        "export.picture_size": 16,
    }
    if scene != "surface":
        exported |= {"export.resolution": 24, "export.faces": 200}
    assert command("a red mug", *line({**options, **exported}), f"output_dir={tmp_path / 'run'}") == 0
    own = {
        "hash_grid": {"mesh.glb", "mesh.obj", "mesh.ply", "contact.png", "turntable.mp4"},
        "image": {"image.png"},
        "surface": {"mesh.glb", "contact.png", "turntable.mp4"},
        "spheres": {"spheres.json", "contact.png", "turntable.mp4"},
    }[scene]
    folders = [tmp_path / "run" / f"particle-{i + 1}" for i in range(particles)]
    for made in [tmp_path / "run"] if particles == 1 else folders:
        assert own <= {path.name for path in made.iterdir()}


#: Words of a command line that are refused, and what is said of them.
REFUSED = [
    (["perp_neg.enabled=true"], r"perp_neg.enabled needs view_words=four.*got sixteen; add view_words=four"),
    (["perp_neg.enabled=true", "view_words=none"], r"needs view_words=four.*got none"),
    (["guidance=mix", "guidance.terms=[{loss:sds,prior:novel_view}]"], r"guidance.terms\[0\] names the model.*add image=FILE"),
    (["guidance=mix", "guidance.terms=[{loss:sds,prior:prior}]"], r"needs its own prompt; add prompt"),
    (
        ["image=p.png", "guidance=mix", "guidance.terms=[{loss:sds,prior:novel_view,prompt:a cup}]"],
        r"guidance.terms\[0\]: novel_view is conditioned on a picture and takes no prompt; leave out prompt",
    ),
    (["prior_options.control=depth"], r"prior_options.controlnet and prior_options.control belong together"),
    (["prior_options.controlnet=control"], r"prior_options.controlnet and prior_options.control belong together"),
    (["prior_options.controlnet=control", "prior_options.control=nowhere.png"], r"prior_options.control must be.*nowhere.png is not there"),
    (["scene=image", "penalties.sparsity=5"], r"penalties.sparsity=5 needs a scene that computes it.*leave it out"),
    (["scene=image", "render.patch=16"], r"render.patch=16 needs a scene.*leave it out"),
    (["scene=image", "render.shading=lambertian"], r"render.shading=lambertian needs a scene.*leave it out"),
    (["scene=spheres", "render.shading=lambertian"], r"render.shading=lambertian needs a scene that can be shaded"),
    (["scene=spheres", "penalties.orientation=1"], r"penalties.orientation=1 needs a scene that computes it"),
    (["scene=spheres", "render.latent_until=0.5"], r"render.latent_until=0.5 needs a scene that has normals"),
    (["scene=spheres", "render.recompute=true"], r"render.recompute=True needs a scene that is rendered in chunks"),
    (["scene=spheres", "scene.count=0"], r"scene.count must be .*got 0"),
    (["scene=spheres", "scene.background=pink"], r"scene.background must be .*got 'pink'"),
    (["scene=spheres", "scene.coutn=3"], r"unknown option 'scene.coutn'; did you mean 'scene.count'"),
    (["scene=sphere"], r"unknown scene 'sphere'; did you mean 'spheres'\? there are hash_grid, .*image, .*spheres"),
]  # fmt: skip


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(("words", "said"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_options_that_do_not_fit_are_refused_in_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = refused(capsys, "a red mug", *words)
    assert re.search(said, found), found


#: Words beside a picture without a prompt.
BESIDE_A_PICTURE = [
    (["perp_neg.enabled=true", "view_words=four"], r"perp_neg.enabled=True is for a prior that knows words.*add a prompt"),
    (["view_words=four"], r"view_words=four is for a prior that knows words"),
    (["negative_prompt=ugly"], r"negative_prompt=ugly is for a prior that knows words"),
    (["prior_options.loras=[x]"], r"prior_options.loras=.*is for a prior that knows words"),
    (["prior_options.controlnet=control", "prior_options.control=depth"], r"prior_options.control\w*=\w+ is for a prior that"),
    (["guidance=dds"], r"add a prompt, or choose guidance=sds"),
    (["scene=spheres"], r"scene.background must be white, got grey"),
    (["scene=spheres", "scene.background=white", "penalties.reference_normal=1", "reference.normal=p.png"], r"reference_normal needs a scene that has normals"),
]  # fmt: skip


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(("words", "said"), BESIDE_A_PICTURE, ids=[" ".join(w) for w, _ in BESIDE_A_PICTURE])
def test_options_that_do_not_fit_a_picture_are_refused_in_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = refused(capsys, "image=p.png", "novel_view=novel_view", *words)
    assert re.search(said, found), found


#: Options of how a prior is loaded, beside one that is loaded.
LOADING = [
    {"max_vram": "12GB"},
    {"prior_options.image_size": 32},
    {"prior_options.dtype": "float16"},
    {"prior_options.checkpointing": True},
    {"prior_options.controlnet": "control", "prior_options.control": "depth"},
]


@pytest.mark.parametrize("options", LOADING, ids=str)
def test_options_of_loading_beside_a_loaded_prior_are_refused(
    options: dict[str, Any], priors: dict[str, Prior], tmp_path: Path
) -> None:
    name = next(iter(options))
    with pytest.raises(ValueError, match=name):
        distill.generate("a red mug", prior=priors["plain"], output_dir=tmp_path / "run", **SMALL, **options)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=name):
        compared({**SMALL, **options}, priors["plain"], tmp_path)


def test_a_picture_and_words_are_guided_by_both(tmp_path: Path) -> None:
    options = {
        **options_of("hash_grid", 1, "picture", "run"), "prior": "prior", "prior_options.image_size": 64, "guidance": "mix",
        "guidance.terms": "[{loss:sds,prior:novel_view},{loss:csd,weight:0.1},{loss:sds,prompt:a cup}]",
    }  # fmt: skip
    words = [*line(options), f"output_dir={tmp_path / 'run'}"]
    assert command("a red mug", *words, "perp_neg.enabled=true", "view_words=four") == 0


@pytest.mark.parametrize("scene", ["hash_grid", "spheres"])
def test_a_run_of_particles_goes_on_where_it_stopped(scene: str, tmp_path: Path) -> None:
    options = options_of(scene, 2, "perp_neg", "run")
    words = [*line({**options, "log.checkpoint_every": 1}), f"output_dir={tmp_path / 'run'}"]
    assert command("a red mug", *words) == 0
    (tmp_path / "run" / "manifest.json").unlink()
    (tmp_path / "run" / "report.html").unlink(missing_ok=True)
    assert command("a red mug", *words, "resume=true") == 0


def test_a_comparison_says_that_its_prior_must_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"prior must be a loaded one, got 'sd-2.1-base'; give distill.load_prior"
    ):
        compared(SMALL, "sd-2.1-base", tmp_path)  # type: ignore[arg-type]


def test_python_trains_a_scene_of_ones_own(tmp_path: Path, priors: dict[str, Prior]) -> None:
    options: dict[str, Any] = {**SMALL, **SCENES["spheres"], "export.frames": 2, "export.picture_size": 16}
    asset = distill.generate(
        "a red mug", prior=priors["plain"], scene="spheres", output_dir=tmp_path / "run", **options
    )
    assert asset.manifest["export"]["spheres"] == 20
