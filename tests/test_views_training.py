"""Training of the embedded multi-view prior: what it begins as, what it draws, what it writes."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from distill.cameras import Cameras, turntable
from distill.embedded import world
from distill.embedded.vocabulary import of_prior
from distill.priors import load_prior
from distill.priors.multi_view.attention import TOLD
from distill.priors.multi_view.camera import NUMBERS
from distill.priors.preset import preset_of
from distill.run.assembly.assemble import assemble
from distill.run.config.compose import compose_config
from distill.run.config.implied import takes_views

FOLDER = Path(__file__).parents[1] / "examples" / "embedded"


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The script, with three pictures of each shape, and one thread."""
    sys.path.insert(0, str(FOLDER))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    dataset: Any = importlib.import_module("dataset")
    views, dataset.VIEWS_PER_SHAPE = dataset.VIEWS_PER_SHAPE, 3
    yield importlib.import_module("train_views")
    dataset.VIEWS_PER_SHAPE = views
    torch.set_num_threads(before)
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def work(script: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("work")
    script.main(words(folder, 8))
    return folder


def words(folder: Path, images: int) -> list[str]:
    return ["--work", str(folder), "--output", str(folder / "prior"), "--images", str(images), "--batch", "8",
            "--shapes", "1", "--rings", "1", "--device", "cpu"]  # fmt: skip


@torch.no_grad()
def test_it_begins_as_the_prior_that_ships(script: Any) -> None:
    shipped, unet = load_prior("embedded", dtype=torch.float32), script.make_unet(script.SHIPPED)
    x = torch.randn(4, 48, 16, 16, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([990, 700, 400, 10])
    cond = shipped.embed(["a red mug, front view"] * 4)["encoder_hidden_states"]
    wanted = shipped.network(x, t, cond).sample
    for cameras in (torch.zeros(4, NUMBERS), torch.randn(4, NUMBERS)):
        torch.testing.assert_close(
            unet(x, t, cond, class_labels=cameras).sample, wanted, atol=1e-5, rtol=1e-4
        )
    assert unet.class_embedding.linear_1.weight.abs().max() > 0


@pytest.mark.slow
def test_rings_show_one_object_from_its_cameras(script: Any, work: Path) -> None:
    data = script.load(script.parse_options(words(work, 8)))
    assert len(data.rings.kinds) == len(world.KINDS)
    images, cameras, captions = data.rings.draw(3)
    assert images.shape == (12, 3, 64, 64) and cameras.shape == (12, NUMBERS)
    assert all(captions[4 * i : 4 * i + 4] == [captions[4 * i]] * 4 for i in range(3))
    assert all(world.parse(text).view is None for text in captions)
    c2w = cameras.view(3, 4, 4, 4)
    position = c2w[..., :3, 3]
    torch.testing.assert_close(position.norm(dim=-1), torch.ones(3, 4))
    assert (position[..., 2].amax(1) - position[..., 2].amin(1)).max() < 1e-5
    # The one behind is at the other side of the axis.
    torch.testing.assert_close(position[:, 0, :2], -position[:, 2, :2], atol=1e-5, rtol=0)
    # The background, which is the object's alone, is the same grey in its corners from every side.
    corners = images.view(3, 4, 3, 64, 64)[..., 0, 0]
    assert torch.equal(corners, corners[:, :1].expand_as(corners))


def test_its_folder_is_a_prior_of_four_views_and_of_one(script: Any, work: Path) -> None:
    folder = work / "prior"
    four, one = load_prior(folder), load_prior(folder, views=1)
    assert (four.views, one.views) == (4, 1)
    known = of_prior(str(folder))
    assert known is not None and set(known.names) == set(world.KINDS)
    assert preset_of(str(folder)) == "embedded" and takes_views({"prior": str(folder)})
    x = torch.randn(4, *four.shape, generator=torch.Generator().manual_seed(1))
    t, cond = torch.full((4,), 600), four.embed(["a red mug"] * 4)
    together, apart = four.predict_noise(x, t, cond, turntable(4)), one.predict_noise(x, t, cond)
    assert together.isfinite().all() and not torch.equal(together, apart)
    # Single pictures of a network that took one step from the bundled one.
    shipped = load_prior("embedded").predict_noise(x, t, cond)
    assert (apart - shipped).abs().max() < 0.2
    job = assemble(
        compose_config(["prompt=a red mug", f"prior={folder}", "iterations=1", "render.size=8"]), four
    )
    cameras: Cameras = job.cameras(0.0, 4, torch.Generator())
    assert cameras.elevation_deg.unique().numel() == 1


def beside(work: Path, folder: Path) -> Path:
    """Another work folder with the same pictures."""
    folder.mkdir()
    for part in ("pictures", "rings"):
        (folder / part).symlink_to(work / part)
    return folder


def same(one: Any, other: Any) -> bool:
    """Whether two states are the same bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.slow
def test_a_run_that_is_interrupted_ends_as_one_that_is_not(
    script: Any, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, step = [0], script.train_step

    def stopping(after: int) -> Any:
        def counted(*given: Any) -> int:
            if done[0] == after:
                raise ConnectionAbortedError
            done[0] += 1
            views: int = step(*given)
            return views

        return counted

    whole, halved = (beside(work, tmp_path / name) for name in ("whole", "halved"))
    monkeypatch.setattr(script, "train_step", stopping(3))
    script.main(words(whole, 24))
    assert done == [3]
    monkeypatch.setattr(script, "train_step", stopping(2))
    done[0] = 0
    with pytest.raises(ConnectionAbortedError):
        script.main([*words(halved, 24), "--save-minutes", "0"])
    assert torch.load(halved / "views.pt", weights_only=True)["seen"] == 16
    monkeypatch.setattr(script, "train_step", stopping(9))
    done[0] = 0
    script.main(words(halved, 24))
    # A third of the updates was left, and ends at the same bits.
    assert done == [1]
    one, other = (torch.load(folder / "views.pt", weights_only=True) for folder in (whole, halved))
    assert one.pop("seconds") > 0 and other.pop("seconds") > 0
    assert one["seen"] == 24 and same(one, other)
    first, second = (
        load_file(folder / "prior/unet/diffusion_pytorch_model.safetensors") for folder in (whole, halved)
    )
    assert same(first, second)
    begun = script.make_unet(script.SHIPPED).state_dict()
    assert any(not torch.equal(first[name], begun[name].half()) for name in first)
    # Another prior to begin as, of the same words, would leave the folder with a text encoder of another UNet.
    start = tmp_path / "start"
    shutil.copytree(script.SHIPPED, start)
    weights = start / "text_encoder/model.safetensors"
    save_file({name: 2 * value for name, value in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=r"began as another prior: give the --start it was begun with"):
        script.main([*words(halved, 32), "--start", str(start)])


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_unet_follows_its_attention(script: Any) -> None:
    """What is compiled for four views together is not used for single pictures, nor the other way round."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(16,), down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
        norm_num_groups=4, layers_per_block=1, cross_attention_dim=16, attention_head_dim=2, **TOLD,
    )  # fmt: skip
    attention = script.Attention.of(unet)
    graphs: list[Any] = []
    made: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled: Any = torch.compile(unet, backend=backend)
    x, text, cameras = torch.randn(4, 4, 8, 8), torch.randn(4, 3, 16), torch.randn(4, NUMBERS)
    told = (x, torch.full((4,), 300), text)
    found = {}
    for _ in range(3):
        for name in ("together", "single"):
            unet.set_attn_processor(dict(getattr(attention, name)))
            given = compiled(*told, class_labels=cameras).sample
            torch.testing.assert_close(given, unet(*told, class_labels=cameras).sample)
            found[name] = given
        made.append(len(graphs))
    assert (found["together"] - found["single"]).abs().max() > 1e-3
    # Both are compiled in the first round, and no more later.
    assert made[0] >= 2 and made[-1] == made[0]
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--batch", "6"], "--batch must be a multiple of the 4 views of an object, at least 4, got 6"),
        (["--images", "0"], "--images must be at least 1, got 0"),
        (["--minutes", "0"], "--minutes must be above 0, got 0"),
        (["--single", "1.5"], "--single must be a share in [0, 1], got 1.5"),
        (["--start", "/nowhere"], "--start must be the folder of a text prior"),
    ],
)
def test_wrong_options_get_one_line(
    script: Any, given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        script.parse_options(["--work", "w", "--output", "o", *given])
    assert said in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(SystemExit):
        script.parse_options(["--work", "w", "--output", str(script.SHIPPED)])
    assert "a folder of its own" in capsys.readouterr().err.splitlines()[-1]
