"""A picture as a scene."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from usual import optimiser_of

from distill.cameras import turntable
from distill.contracts import Step
from distill.renderers import ImageScene


def test_the_render_is_the_parameters_themselves() -> None:
    scene = ImageScene(5, 7, batch=2)
    picture = scene.render(turntable(4), 5, 7)
    assert picture.rgb.shape == (4, 5, 7, 3)
    assert torch.equal(picture.rgb[0], scene.image[0])
    assert torch.equal(picture.rgb[3], scene.image[1])
    assert (picture.opacity == 1).all()


def test_gradients_add_up_over_the_cameras_that_share_a_picture() -> None:
    scene = ImageScene(2, 2)
    scene.render(turntable(3), 2, 2).rgb.sum().backward()
    assert scene.image.grad is not None
    assert torch.equal(scene.image.grad, torch.full((1, 2, 2, 3), 3.0))


def test_other_sizes_keep_the_mean_colour() -> None:
    scene = ImageScene(8, 8)
    rgb = scene.render(turntable(1), 4, 4).rgb
    assert rgb.shape == (1, 4, 4, 3)
    torch.testing.assert_close(rgb.mean((1, 2)), scene.image.mean((1, 2)), atol=0.05, rtol=0)


def test_starts_are_grey_or_noise_around_it() -> None:
    assert (ImageScene(4, 4, init="grey").image == 0.5).all()
    noise = ImageScene(64, 64, seed=1).image
    assert noise.mean().item() == pytest.approx(0.5, abs=0.01)
    assert noise.std().item() == pytest.approx(0.2, abs=0.01)
    assert torch.equal(noise, ImageScene(64, 64, seed=torch.Generator().manual_seed(1)).image)


def test_every_parameter_is_in_a_group() -> None:
    scene = ImageScene(2, 2)
    scene.update(Step(), optimiser_of(scene), torch.Generator())
    assert [id(p) for p in scene.parameter_groups()["image"].parameters] == [
        id(p) for p in scene.parameters()
    ]


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="expected init"):
        ImageScene(2, 2, init="black")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        ImageScene(0, 2)


def _python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_package_imports_nothing_heavy_and_names_what_it_has(tmp_path: Path) -> None:
    code = "import sys, distill.renderers as r; print('torch' in sys.modules, *dir(r)); r.nerf_scene"
    done = _python(code, tmp_path)
    assert done.stdout.split()[0] == "False"
    assert "HashGridScene" in done.stdout
    assert "there are HashGridScene" in done.stderr


def test_the_folders_bare_name_is_refused() -> None:
    done = _python("import renderers", Path(__file__).parent.parent)
    assert "import distill.renderers" in done.stderr


@pytest.mark.slow
def test_a_first_render_prints_nothing(tmp_path: Path) -> None:
    code = (
        "from distill.renderers import HashGridScene, render; from distill.cameras import turntable;"
        "render(HashGridScene(levels=2), turntable(1), 4, 4).rgb.sum().backward()"
    )
    done = _python(code, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
