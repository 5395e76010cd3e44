"""Multi-view priors: several views of one object, denoised together, each told its camera."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scenes import SINGLE
from tiny_pipelines import make, unet
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from distill import loop
from distill.cameras import Cameras, orbit, turntable
from distill.contracts import Condition
from distill.files.checkpoint import load_checkpoint, save_checkpoint
from distill.forecast.network import forecast, shadow
from distill.guidance.mix import mix
from distill.guidance.sds import sds
from distill.job import Job, State, views_at_once
from distill.priors import load_prior
from distill.priors.diffusion import DiffusionPrior
from distill.priors.exact import ExactPrior, gaussian
from distill.priors.multi_view.attention import CAMERA, fold, takes_cameras
from distill.priors.multi_view.camera import check_groups, numbers
from distill.priors.sampling import sample
from distill.priors.source import find
from distill.run.assembly.assemble import assemble
from distill.run.assembly.fit import savings
from distill.run.config.compose import compose_config
from distill.run.config.implied import with_implied
from distill.samplers.cameras import groups, ranges

VIEWS = 4


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multi-view Stable Diffusion with random weights."""
    path = tmp_path_factory.mktemp("multi_view")
    make("multi_view").save_pretrained(path)
    return path


def load(folder: Path, **options: Any) -> DiffusionPrior:
    return load_prior(folder, dtype=torch.float32, image_size=64, **options)


@pytest.fixture(scope="module")
def prior(folder: Path) -> DiffusionPrior:
    return load(folder)


def asked(prior: DiffusionPrior, rows: int = VIEWS, seed: int = 1) -> tuple[Tensor, Tensor, Any]:
    """Noised pictures, one timestep, and a prompt, for some rows."""
    x = torch.randn(rows, *prior.shape, generator=generator(seed))
    return x, torch.full((rows,), 400), prior.embed(["a mug"] * rows)


# ---- cameras


def test_a_camera_is_told_as_it_was_worked_out_by_hand() -> None:
    s, c = math.sin(math.radians(15)), math.cos(math.radians(15))
    by_hand = [
        # From +x, 15 degrees up: right is +y, up leans back to -x, and the position is one unit away.
        [0, -s, c, c, 1, 0, 0, 0, 0, c, s, s, 0, 0, 0, 1],
        # From +y: right is -x.
        [-1, 0, 0, 0, 0, -s, c, c, 0, c, s, s, 0, 0, 0, 1],
    ]
    cameras = orbit(torch.tensor([0.0, 90.0]), torch.tensor([15.0, 15.0]), 3.2, 40.0)
    torch.testing.assert_close(numbers(cameras), torch.tensor(by_hand), atol=1e-6, rtol=0)
    # Neither the distance nor the lens is told.
    again = orbit(torch.tensor([0.0, 90.0]), torch.tensor([15.0, 15.0]), 1.7, 60.0)
    torch.testing.assert_close(numbers(again), numbers(cameras), atol=1e-6, rtol=0)


def with_y_up(azimuth_deg: float, elevation_deg: float) -> np.ndarray:
    """MVDream's camera: made in a world with y up, where azimuth 0 looks along -z, and turned into one with z up."""
    turn, rise = np.radians([azimuth_deg, elevation_deg])
    # Two rotations of a camera that stands at z = 1: up by the elevation, then around y.
    up = np.array([[1, 0, 0], [0, np.cos(rise), np.sin(rise)], [0, -np.sin(rise), np.cos(rise)]])
    around = np.array([[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]])
    turned = around @ up
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turned, turned @ [0, 0, 1]
    # What was z is -y now, and what was y is z.
    return np.array([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]) @ matrix


@pytest.mark.parametrize("elevation", [-20.0, 0.0, 15.0, 60.0])
def test_a_camera_is_mvdreams_of_a_quarter_turn_more(elevation: float) -> None:
    azimuth = torch.tensor([-130.0, 0.0, 30.0, 90.0, 170.0])
    told = numbers(orbit(azimuth, torch.full((5,), elevation), 2.5, 40.0)).view(-1, 4, 4)
    theirs = [with_y_up(float(angle) + 90, elevation) for angle in azimuth]
    np.testing.assert_allclose(told.numpy(), theirs, atol=1e-6)


def test_groups_are_rings_at_one_height_with_one_lens() -> None:
    draw = groups(elevation_deg=(0, 30), distance=(2, 4), fov_y_deg=(20, 60))
    cameras = draw(0.0, 12, generator())
    check_groups(cameras, 4, "x")
    azimuth = cameras.azimuth_deg.view(3, 4)
    torch.testing.assert_close(
        torch.remainder(azimuth.roll(-1, 1) - azimuth, 360), torch.full((3, 4), 90.0), atol=1e-3, rtol=0
    )
    for values in (cameras.elevation_deg, cameras.distance, cameras.fov_y_deg):
        assert (values.view(3, 4) == values.view(3, 4)[:, :1]).all()
        assert len(values.unique()) == 3
    # Three objects' first angles are in adjoining thirds of a quarter turn, all shifted by one angle.
    for seed in range(20):
        offset = draw(0.0, 12, generator(seed)).azimuth_deg[::4].remainder(90).sort().values
        assert torch.cat([offset.diff(), offset[:1] + 90 - offset[-1:]]).max() < 60
    steps = torch.cat([draw(0.0, 4, generator(i)).azimuth_deg[:1] for i in range(400)]).remainder(90)
    assert abs(float(steps.mean()) - 45) < 4 and float(steps.min()) < 5 and float(steps.max()) > 85
    assert len(groups(views=6)(0.0, 12, generator())) == 12
    check_groups(groups(views=6)(0.0, 12, generator()), 6, "x")


def test_a_relative_distance_keeps_the_object_as_large() -> None:
    cameras = groups(distance=(0.8, 1.0), fov_y_deg=(15, 60), relative_distance=True)(0.0, 40, generator())
    seen = cameras.distance * torch.tan(torch.deg2rad(cameras.fov_y_deg) / 2)
    assert ((seen >= 0.8) & (seen <= 1.0)).all()
    # 0.9 at 90 degrees, whose half has a tangent of 1; at 53.13 degrees it is 0.5.
    wide = groups(distance=(0.9, 0.9), fov_y_deg=(90, 90), relative_distance=True)(0.0, 4, generator())
    torch.testing.assert_close(wide.distance, torch.full((4,), 0.9))
    half = 2 * math.degrees(math.atan(0.5))
    narrow = groups(distance=(0.9, 0.9), fov_y_deg=(half, half), relative_distance=True)(0.0, 4, generator())
    torch.testing.assert_close(narrow.distance, torch.full((4,), 1.8))


# ---- the network


@contextmanager
def attending_by_hand(network: nn.Module, views: int) -> Iterator[None]:
    """Replace self-attention by softmax(q k / sqrt d) v over the tokens of every view, written out."""

    def attend(layer: Any, hidden: Tensor) -> Tensor:
        groups = []
        for begin in range(0, len(hidden), views):
            tokens = torch.cat(list(hidden[begin : begin + views]))
            heads = []
            for q, k, v in zip(
                *(part(tokens).chunk(layer.heads, dim=1) for part in (layer.to_q, layer.to_k, layer.to_v)),
                strict=True,
            ):
                heads.append(torch.softmax(q @ k.T / math.sqrt(q.shape[1]), dim=1) @ v)
            groups += layer.to_out[0](torch.cat(heads, dim=1)).chunk(views)
        return torch.stack(groups)

    layers = [layer for name, layer in network.named_modules() if name.endswith("attn1")]
    assert layers
    for layer in layers:
        layer.forward = lambda hidden, *_, own=layer, **__: attend(own, hidden)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def embedded_by_hand(network: Any, plain: Any, told: Tensor) -> Any:
    """Add MVDream's two layers to a plain UNet's time embedding, for these cameras."""
    own = network.class_embedding
    first = told @ own.linear_1.weight.T + own.linear_1.bias
    added = (first * torch.sigmoid(first)) @ own.linear_2.weight.T + own.linear_2.bias
    return plain.time_embedding.register_forward_hook(lambda module, args, output: output + added)


def plain_of(network: Any) -> Any:
    """The UNet without the layers for cameras, and with the same weights otherwise."""
    plain = unet()
    kept = {name: value for name, value in network.state_dict().items() if "class_embedding" not in name}
    plain.load_state_dict(kept)
    return plain


@torch.no_grad()
def test_views_go_through_a_plain_unet_with_attention_and_cameras_written_out(prior: DiffusionPrior) -> None:
    x, t, cond = asked(prior, 8)
    cameras = Cameras.joined(
        [turntable(4), orbit(torch.arange(4.0) * 90 + 20, torch.full((4,), 40.0), 2, 30)]
    )
    plain = plain_of(prior.network)
    handle = embedded_by_hand(prior.network, plain, numbers(cameras))
    with attending_by_hand(plain, VIEWS):
        wanted = plain(x, t, cond["encoder_hidden_states"]).sample
    handle.remove()
    found = prior.predict_noise(x, t, cond, cameras)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    # Without either of the two, it is far from that.
    apart = plain(x, t, cond["encoder_hidden_states"]).sample
    assert (apart - wanted).abs().max() > 1e-2


@torch.no_grad()
def test_with_one_view_it_is_the_unmodified_unet(folder: Path, prior: DiffusionPrior) -> None:
    one = load(folder, views=1)
    assert (one.views, prior.views) == (1, 4)
    x, t, cond = asked(one, 3)
    plain = plain_of(one.network).to(memory_format=torch.channels_last)  # as priors have it
    wanted = plain(x.to(memory_format=torch.channels_last), t, cond["encoder_hidden_states"]).sample
    assert torch.equal(one.predict_noise(x, t, cond), wanted)
    # It takes no cameras, as other priors of single pictures.
    assert torch.equal(one.predict_noise(x, t, cond, turntable(3)), wanted)


@torch.no_grad()
def test_as_many_equal_views_are_one_view(folder: Path, prior: DiffusionPrior) -> None:
    """A softmax over copies of the same keys gives the same average."""
    x, t, found = asked(prior, 1)
    cond: dict[str, Tensor] = dict(found)
    x, t = x[:1], t[:1]
    camera = numbers(turntable(1))
    alone = load(folder, views=1).forward(x, t, {**cond, CAMERA: camera})
    same = {name: value.expand(4, *value.shape[1:]) for name, value in {**cond, CAMERA: camera}.items()}
    together = prior.forward(x.expand(4, -1, -1, -1), t.expand(4), same)
    torch.testing.assert_close(together, alone.expand(4, -1, -1, -1), atol=1e-5, rtol=1e-4)


def test_views_see_one_another_and_no_other_object(prior: DiffusionPrior) -> None:
    x, t, cond = asked(prior, 8)
    cameras = Cameras.joined([turntable(4)] * 2)
    whole = prior.predict_noise(x, t, cond, cameras)
    # Each object alone: the same numbers.
    for part in (slice(0, 4), slice(4, 8)):
        own = {name: value[part] for name, value in cond.items()}
        alone = prior.predict_noise(x[part], t[part], own, cameras[part])
        torch.testing.assert_close(alone, whole[part], atol=1e-6, rtol=1e-5)
    # One view of the first object changes, and so do all of it, and none of the second.
    other = x.clone()
    other[2] += 1
    moved = (prior.predict_noise(other, t, cond, cameras) - whole).flatten(1).abs().amax(1)
    assert (moved[:4] > 1e-4).all() and (moved[4:] < 1e-6).all()
    # Groups cut elsewhere are other objects.
    shifted = prior.predict_noise(x.roll(2, 0), t, cond, cameras[torch.arange(8).roll(2)]).roll(-2, 0)
    assert (shifted - whole).flatten(1).abs().amax(1).min() > 1e-4


def test_cameras_belong_to_their_views(prior: DiffusionPrior) -> None:
    x, t, cond = asked(prior)
    cameras, order = turntable(4), torch.tensor([2, 0, 3, 1])
    whole = prior.predict_noise(x, t, cond, cameras)
    both = prior.predict_noise(x[order], t, cond, cameras[order])
    torch.testing.assert_close(both, whole[order], atol=1e-6, rtol=1e-5)
    exchanged = prior.predict_noise(x, t, cond, cameras[order])
    assert (exchanged - whole).flatten(1).abs().amax(1).min() > 1e-4


def test_a_vsd_copy_attends_over_all_views(prior: DiffusionPrior) -> None:
    from distill.priors.adapter import Student

    student = Student(
        prior, rank=2, alpha=2, targets=("to_q", "to_out.0"), cameras=True, generator=generator()
    )
    x, t, cond = asked(prior)
    start = student.predict_noise(x, t, cond, turntable(4))
    torch.testing.assert_close(start, prior.predict_noise(x, t, cond, turntable(4)))
    with torch.no_grad():
        for parameter in student.low_rank():
            parameter.add_(0.3)
    moved = student.predict_noise(x, t, cond, turntable(4))
    assert (moved - start).abs().max() > 1e-3
    other = x.clone()
    other[3] += 1
    seen = student.predict_noise(other, t, cond, turntable(4)) - moved
    assert seen[0].abs().max() > 1e-4
    student.network.delete_adapters("student")


# ---- losses


def test_rescaling_is_mvdreams_distance_to_its_estimate(prior: DiffusionPrior) -> None:
    x, noise = (torch.randn(8, *prior.shape, generator=generator(i)) for i in (3, 4))
    t = torch.tensor([700] * 4 + [250] * 4)
    cameras = Cameras.joined([turntable(4)] * 2)
    texts = {role: prior.embed([text] * 8) for role, text in (("text", "a mug"), ("uncond", ""))}
    cond = Condition(texts, cameras)
    found = sds(prior, x, cond, t, noise, scale=50.0, weighting="hifa", rescale=0.5)
    alpha, sigma = prior.alpha(t).double(), prior.sigma(t).double()
    x_t = (alpha * x + sigma * noise).float()
    e_c, e_u = (prior.predict_noise(x_t, t, texts[role], cameras).double() for role in ("text", "uncond"))
    wanted = []
    for own in (slice(0, 4), slice(4, 8)):
        guided = (x_t[own] - sigma[own] * (e_u + 50 * (e_c - e_u))[own]) / alpha[own]
        without = (x_t[own] - sigma[own] * e_c[own]) / alpha[own]
        # One standard deviation for all four views.
        adjusted = guided * without.flatten().std() / guided.flatten().std()
        wanted.append(x[own] - (0.5 * adjusted + 0.5 * guided))
    torch.testing.assert_close(found.double(), torch.cat(wanted), atol=2e-3, rtol=1e-3)


def test_rescaling_of_numbers_by_hand() -> None:
    """A prior of single pictures that predicts known noises: two pixels, alpha 0.6 and sigma 0.8."""
    from distill.forecast.network import Counting

    class Known(Counting):
        shape = (1, 1, 2)

        def predict_noise(self, x_t: Tensor, t: Tensor, cond: Any, cameras: Any = None) -> Tensor:
            values = torch.where(cond["prompt"].view(-1, 1, 1, 1) > 0, 1.0, 0.0)
            return torch.cat([values, -values], dim=3)

    known = Known()
    text, uncond = {"prompt": torch.ones(1, 1)}, {"prompt": torch.zeros(1, 1)}
    cond = Condition({"text": text, "uncond": uncond})
    zero = torch.zeros(1, 1, 1, 2)
    args = (known, zero, cond, torch.tensor([500]), zero)
    # x_t = 0. The noises are (1, -1) under the prompt and (3, -3) at scale 3: clean pictures -4/3 of that, and -4.
    # Their deviations are as 1 to 3, so that half of the way is a factor of (1/3 + 1) / 2 = 2/3: -8/3.
    found = sds(*args, scale=3.0, weighting="hifa", rescale=0.5)
    torch.testing.assert_close(found, torch.tensor([[[[8 / 3, -8 / 3]]]]))
    torch.testing.assert_close(sds(*args, scale=3.0, weighting="hifa"), torch.tensor([[[[4.0, -4.0]]]]))
    # Another weighting is w alpha / sigma of the same: 0.64 * 0.75 = 0.48 of it.
    found = sds(*args, scale=3.0, rescale=0.5)
    torch.testing.assert_close(found, torch.tensor([[[[1.28, -1.28]]]]))
    assert torch.equal(sds(*args, scale=1.0, rescale=0.5), sds(*args, scale=1.0))


LOSSES = {
    "sds": ("guidance=sds", "guidance.rescale=0.5", "guidance.weighting=hifa", "guidance.scale=50"),
    "csd": ("guidance=csd",),
    "asd": ("guidance=asd", "guidance.scale=7.5", "negative_prompt='ugly, flat'"),
    "vsd": ("guidance=vsd",),
    "tp_sds": ("guidance=tp_sds",),
}


def composed(folder: Path, *words: str) -> Any:
    said = ["prompt=a mug", f"prior={folder}", "render.batch=8", "iterations=4", "render.size=8", *words]
    return compose_config(said)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains_and_resumes_to_the_same_bits(
    name: str, folder: Path, prior: DiffusionPrior, tmp_path: Path
) -> None:
    config = composed(folder, "scene=image", "render.at_once=5", *LOSSES[name])
    drawn: list[Tensor] = []

    def made() -> Job:
        return assemble(config, prior)

    def train(job: Job, stop: int) -> State:
        timesteps = job.timesteps

        def counted(progress: float, batch: int, generator: torch.Generator) -> Tensor:
            drawn.append(timesteps(progress, batch, generator))
            return drawn[-1]

        object.__setattr__(job, "timesteps", counted)
        return loop.train(job, lambda state, *_: state.step >= stop)

    whole = train(made(), 4)
    # Five views at a time are one object; each part draws one timestep.
    assert [len(t) for t in drawn] == [1] * 8
    save_checkpoint(tmp_path, 2, train(made(), 2).state_dict())
    resumed, saved = made(), load_checkpoint(tmp_path)
    assert saved is not None
    resumed.state.load_state_dict(saved)
    again = train(resumed, 4)
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    if whole.learner:
        first, second = whole.learner.state_dict()["student"], again.learner.state_dict()["student"]  # type: ignore[union-attr]
        assert all(torch.equal(*pair) for pair in zip(first["low_rank"], second["low_rank"], strict=True))
    assert whole.skipped == 0


def test_a_multi_view_prior_is_mixed_with_one_of_single_pictures(folder: Path, prior: DiffusionPrior) -> None:
    single = exact_pictures(prior)
    terms = [
        {"loss": "sds", "weight": 1.0, "scale": 50.0},
        {"loss": "csd", "weight": 0.25, "prompt": "a mug", "prior": single},
    ]
    given = mix(prior, generator(), terms=terms, view_words="none")
    from distill.conditions import prompts

    x, noise = (torch.randn(4, *prior.shape, generator=generator(i)) for i in (3, 4))
    cond = prompts.conditioner(prior, "a mug")(turntable(4), loop.Step())
    t = torch.full((4,), 500)
    found = given(prior, x, cond, t, noise)
    first = sds(prior, x, cond, t, noise, scale=50.0)
    rest = mix(prior, generator(), terms=terms[1:], view_words="none")(prior, x, cond, t, noise)
    torch.testing.assert_close(found, first + rest)
    assert rest.abs().max() > 0 and first.abs().max() > 0
    for views, remedy in ((1, "make .* the run's with prior="), (8, "give the run's prior_options.views=4$")):
        run = single if views == 1 else replace(prior, views=8)
        with pytest.raises(
            ValueError, match=f"takes 4 views together and the run's prior {views}; {remedy}"
        ) as caught:
            mix(run, generator(), terms=[{"loss": "sds", "prompt": "a mug", "prior": prior}])
        assert "\n" not in str(caught.value)


def exact_pictures(prior: DiffusionPrior) -> ExactPrior:
    size = prior.image_size
    means = {text: torch.rand(3, size, size, generator=generator(i)) for i, text in enumerate(("a mug", ""))}
    found = gaussian(means, 0.5)
    return ExactPrior(found.prompts, found.abar.float())


# ---- runs


def test_a_run_draws_groups_and_says_no_view_words(folder: Path, prior: DiffusionPrior) -> None:
    words = with_implied([f"prior={folder}"])
    # A folder of Stable Diffusion's class, whose UNet takes cameras.
    assert {"cameras=groups", "preset=multi_view"} <= {*words}
    alone = with_implied([f"prior={folder}", "prior_options.views=1"])
    assert "cameras=groups" not in alone and "preset=latent" in alone
    plain = compose_config(["prompt=a mug", f"prior={folder}", "experiment=dreamfusion"])
    assert plain.render.batch == plain.cameras.views == VIEWS
    assert "cameras=groups" not in with_implied([f"prior={folder}", "cameras=ranges"])
    assert "cameras=groups" in with_implied(["prior=mvdream"])
    assert "preset=multi_view" in with_implied(["prior=mvdream"])
    job = assemble(composed(folder), prior)
    cameras = job.cameras(0.0, 8, generator())
    check_groups(cameras, 4, "x")
    cond = job.condition(cameras, loop.Step())
    rows = cond.text["encoder_hidden_states"]
    assert all(torch.equal(row, rows[0]) for row in rows)
    # As one of single pictures, it is a prior like others: the side that a camera sees is said.
    options = ("prior_options.image_size=64", "prior_options.dtype=float32", "prior_options.views=1")
    single = assemble(composed(folder, *options))
    assert single.prior.views == 1
    rows = single.condition(turntable(4), loop.Step()).text["encoder_hidden_states"]
    assert not torch.equal(rows[0], rows[2])


def error_of(folder: Path, *words: str, prior: Any = None) -> str:
    with pytest.raises(ValueError) as caught:
        assemble(composed(folder, *words), prior)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.slow
def test_what_does_not_go_with_several_views_gets_one_line(
    folder: Path, prior: DiffusionPrior, tmp_path: Path
) -> None:
    assert "render.batch must be a multiple of the 4 views" in error_of(folder, "render.batch=6", prior=prior)
    said = error_of(folder, "cameras=ranges", prior=prior)
    assert "4 views of one object at one elevation" in said and said.endswith("choose cameras=groups")
    level = ("cameras=ranges", "cameras.elevation_deg=[15,15]", "cameras.distance=[3,3]")
    said = error_of(folder, *level, "cameras.fov_y_deg=[30,60]", prior=prior)
    assert "at one field of view" in said and said.endswith("choose cameras=groups")
    assert "90 degrees of azimuth apart" in error_of(folder, *level, prior=prior)
    assert "90 degrees of azimuth apart" in error_of(folder, "cameras.views=8", prior=prior)
    assert "is conditioned on cameras and needs none" in error_of(
        folder, "perp_neg.enabled=true", "view_words=four", prior=prior
    )
    control = ("prior_options.controlnet=x", "prior_options.control=depth")
    assert "takes 4 views together; leave it out, or add prior_options.views=1" in error_of(folder, *control)
    plain = tmp_path / "plain"
    make("stable_diffusion").save_pretrained(plain)
    said = error_of(folder, "views.front=a mug with a handle", prior=prior)
    assert "so that auto is none; add view_words=four, or leave them out" in said
    for views in (0, -4):
        with pytest.raises(ValueError, match=rf"prior_options.views must be at least 1, got {views}$"):
            load_prior(folder, views=views)
    said = error_of(plain, "prior_options.views=4")
    assert "prior_options.views=4 is for a multi-view prior" in said


def test_a_batch_that_splits_an_object_is_refused_where_it_is_denoised(prior: DiffusionPrior) -> None:
    x, t, cond = asked(prior, 6)
    with pytest.raises(ValueError, match="a batch of 6 is no multiple of that"):
        prior.predict_noise(x, t, cond, turntable(6))
    x, t, cond = asked(prior)
    with pytest.raises(ValueError, match="at one timestep, and those given differ"):
        prior.predict_noise(x, torch.tensor([1, 1, 2, 1]), cond, turntable(4))
    with pytest.raises(ValueError, match=r"needs the cameras of the 4 views .*pass cameras=$"):
        prior.predict_noise(x, t, cond)
    for count in (1, 8):
        with pytest.raises(
            ValueError, match=rf"the camera of each picture, got {count} cameras for 4 pictures$"
        ):
            prior.predict_noise(x, t, cond, turntable(count))
    with pytest.raises(ValueError, match="6 cameras are no multiple"):
        check_groups(turntable(6), 4, "x")
    with pytest.raises(ValueError, match=r"render.batch must be a multiple of cameras.views=4, .* got 6"):
        groups()(0.0, 6, generator())
    check_groups(ranges(elevation_deg=(15, 15), distance=(3, 3))(0.0, 1, generator()), 1, "x")


def test_cameras_that_refuse_the_batch_do_so_before_a_folder_is_made(tmp_path: Path) -> None:
    """Also beside a prior of single pictures, which asks nothing of them."""
    from distill.run.execute import run

    said = compose_config(
        ["prompt=a red mug", "cameras=groups", "render.batch=3", f"output_dir={tmp_path / 'out'}"]
    )
    with pytest.raises(ValueError, match=r"render.batch must be a multiple of cameras.views=4, .* got 3"):
        run(said)
    assert not (tmp_path / "out").exists()


def test_scenes_train_in_whole_groups(folder: Path, prior: DiffusionPrior) -> None:
    """A scene that looks different from every side, through the real network."""
    from test_contracts import job_of as contract_job

    job = contract_job(SINGLE["spheres"](), prior, sds, groups(), batch=8, at_once=6)
    assert views_at_once(job) == 4
    before = [p.detach().clone() for p in job.state.parameters()]
    loop.train(job)
    assert job.state.skipped == 0
    assert all(not torch.equal(*pair) for pair in zip(before, job.state.parameters(), strict=True))


@pytest.mark.slow
def test_a_shadow_counts_what_the_folded_network_does(folder: Path, prior: DiffusionPrior) -> None:
    counted = shadow(find(folder), torch.float32, 64)
    assert counted.views == 4
    found = forecast(counted, [8, 4], 4)
    x, _, _ = asked(prior, 12)
    # As many tokens as CLIP gives, which the small text encoder does not.
    cond = {name: torch.ones(12, *value.shape[1:]) for name, value in counted.embed([""]).items()}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        prior.predict(x, torch.full((12,), 3), cond)
    assert found.network == counter.get_total_flops()
    # Attention to four views takes more than to one.
    single = shadow(find(folder), torch.float32, 64, views=1)
    assert forecast(single, [8, 4], 4).network < found.network


def test_a_loss_learns_from_no_views_that_are_no_groups(
    folder: Path, prior: DiffusionPrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = SimpleNamespace(
        prior=exact_pictures(prior),
        drawn=SimpleNamespace(cameras=turntable(9)),
        reference=None,
        wording="",
    )
    monkeypatch.setattr("distill.run.assembly.assemble.look_at", lambda *_: picture)
    words = (
        "image=x.png",
        "reference.start=samples",
        "preset=multi_view",
        "scene.log2_table_size=8",
        "scene.background=white",
        "penalties.start_rgb=1",
    )
    said = error_of(folder, *words, "guidance=vsd", prior=prior)
    assert "it learns from the 4 that" in said and "add reference.start=none" in said
    # What learns nothing is not asked meanwhile.
    job = assemble(composed(folder, *words, "guidance=sds"), prior)
    assert len(job.cameras(0.0, 8, generator())) == 8


def test_memory_is_saved_by_whole_objects(folder: Path) -> None:
    def tried(*words: str) -> list[int]:
        given = compose_config([f"prior={folder}", "prompt=a mug", *words])
        return [
            change["render.at_once"] for change in savings(given, find(folder)) if "render.at_once" in change
        ]

    assert tried("render.batch=16") == [8, 4]
    assert tried("render.batch=12") == [4]
    assert tried("render.batch=8", "render.at_once=4") == []
    assert tried("render.batch=8", "prior_options.views=1") == [4, 2, 1]
    assert "render.at_once=4," in loop._too_large(3, 4, 4)


def test_samples_are_drawn_of_several_views(prior: DiffusionPrior) -> None:
    x = sample(prior, ["a mug"] * 4, generator=generator(), steps=1, scale=1.0, cameras=turntable(4))
    # One step from pure noise, written out.
    noise, t = torch.randn(4, *prior.shape, generator=generator()), torch.full((4,), 999)
    told = prior.predict_noise(noise, t, prior.embed(["a mug"] * 4), turntable(4))
    torch.testing.assert_close(x, (noise - prior.sigma(t) * told) / prior.alpha(t), atol=1e-3, rtol=1e-4)
    with pytest.raises(ValueError, match=r"needs the cameras of the 4 views .*pass cameras=$"):
        sample(prior, ["a mug"] * 4, generator=generator(), steps=1)


def test_a_network_without_self_attention_is_refused() -> None:
    from diffusers import UNet2DConditionModel

    network = UNet2DConditionModel(
        sample_size=8, block_out_channels=(16,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        mid_block_type=None, norm_num_groups=4, layers_per_block=1, cross_attention_dim=16,
        class_embed_type="projection", projection_class_embeddings_input_dim=16,
    )  # fmt: skip
    assert takes_cameras(network.config)
    with pytest.raises(ValueError, match="needs a network with self-attention"):
        fold(network, 4)
