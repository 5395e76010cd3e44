"""What a training step copies to a GPU and reads from it, counted without one: its tensors are torch's ``meta`` device's."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from usual import optimiser_of, settings_of

from distill import loop, transfer
from distill.cameras import Cameras, turntable
from distill.conditions import prompts
from distill.conditions.control import draw_depth, draw_normal
from distill.conditions.perp_neg import Curves
from distill.contracts import Render, Step
from distill.guidance.asd import asd
from distill.guidance.csd import csd
from distill.guidance.sds import sds
from distill.job import Job, State
from distill.priors.novel_view.pose import relative_cameras
from distill.priors.space import Space
from distill.renderers import HashGridScene
from distill.renderers.image import ImageScene
from distill.renderers.volume import finite_difference_normals
from distill.samplers.cameras import ranges
from distill.samplers.schedules import Ramp
from distill.samplers.timesteps import uniform
from distill.transfer import send

META = torch.device("meta")


class Lists(TorchFunctionMode):
    """Notes where Python numbers become a tensor on the device, which torch does out of a dispatch mode's sight."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        index = args[1] if name == "__getitem__" else None
        listed = any(isinstance(part, list) for part in (index if isinstance(index, tuple) else [index]))
        if isinstance(out, Tensor) and out.device == META and (listed or name in ("new_tensor", "tensor")):
            self.found.append(name)
        return out


class Crossing(TorchDispatchMode):
    """Counts the copies between the CPU and the device: those that ``send`` makes, and others, which would wait.

    A number that is read from a tensor of ``meta`` is an error in any case.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0
        self.others: list[str] = []
        self.lists = Lists(self.others)

    def __enter__(self) -> Crossing:
        self.lists.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.lists.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # A tensor of one number is an argument of a kernel, except for those that copy.
        copies = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        leaves = tree_leaves((args, kwargs, out))
        seen = {leaf.device.type for leaf in leaves if isinstance(leaf, Tensor) and (copies or leaf.dim())}
        if len(seen) > 1:
            if any(frame.f_code is transfer.send.__code__ for frame in frames()):
                self.sent += 1
            else:
                self.others.append(str(func))
        return out


def frames() -> Iterator[Any]:
    frame: Any = sys._getframe()
    while frame:
        yield frame
        frame = frame.f_back


class Prior:
    """A prior on a device that has no numbers."""

    name, device, image_size, shape = "none", META, 8, (3, 8, 8)
    latent, words, views, num_timesteps = False, True, 1, 10

    def embed(self, texts: list[str]) -> dict[str, Tensor]:
        return {
            "text": torch.zeros(len(texts), 7, device=META),
            "mask": torch.ones(len(texts), 2, device=META),
        }

    def encode(self, image: Tensor) -> Tensor:
        return image * 2 - 1

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones(10, device=META)[t].view(-1, 1, 1, 1)

    sigma = alpha

    def predict_noise(self, x_t: Tensor, t: Tensor, cond: Any, cameras: Cameras | None = None) -> Tensor:
        assert cameras is None or cameras.c2w.device == META
        return 0.5 * x_t


def job(guidance: Any, condition: Any) -> Job:
    generator = torch.Generator().manual_seed(0)
    scene: Any = ImageScene(8, 8, seed=generator).to(META)
    state = State(scene, optimiser_of(scene), generator)
    prior: Any = Prior()
    settings = settings_of(4, batch=2, size=Ramp(8))
    return Job(state, prior, guidance, condition, scene.render, ranges(), uniform(prior), settings)


def test_the_count_sees_what_would_wait() -> None:
    here, there = torch.zeros(3), torch.zeros(3, device=META)
    waiting: list[Callable[[], Any]] = [
        lambda: here.to(META),
        lambda: here.to(there),
        lambda: there[[0, 2]],
        lambda: there[torch.tensor([0, 2])],
        lambda: there.new_tensor([1.0, 2.0]),
        lambda: torch.tensor([1.0, 2.0], device=META),
        lambda: there.copy_(here),
        lambda: torch.tensor(1.0).to(there),
    ]
    for wait in waiting:
        with Crossing() as crossing:
            wait()
        assert (crossing.sent, len(crossing.others)) == (0, 1)
    for read in (there.tolist, there[0].item, lambda: int(there.min()), lambda: bool(there.any())):
        with pytest.raises(RuntimeError, match="meta"):
            read()


@pytest.mark.parametrize("loss", [partial(sds, scale=3.0), csd, asd], ids=["sds", "csd", "asd"])
def test_a_steps_pictures_and_prompts_wait_for_nothing(loss: Any) -> None:
    prior: Any = Prior()
    views = prompts.view_words("four", "none")
    one = job(loss, prompts.conditioner(prior, "mug", "blurry", views, "cup"))
    cameras = one.cameras(0.0, 2, one.state.generator)
    with Crossing() as crossing:
        seen = loop.see(one, Step(), cameras, one.state.generator)
    assert crossing.others == []
    # Cameras, timesteps, noise, the second random number, and the rows of all prompts together.
    assert crossing.sent == 5
    assert seen.x.device == seen.grad.device == META
    assert seen.cond.cameras is not None
    assert seen.cond.cameras.azimuth_deg.device == META
    assert set(seen.cond.prompts) == {"text", "uncond", "plain", "negative", "source"}


def test_perp_neg_conditions_wait_for_nothing() -> None:
    prior: Any = Prior()
    condition = prompts.conditioner(prior, "mug", views=prompts.view_words("four", "none"), away=Curves())
    with Crossing() as crossing:
        found = condition(turntable(3), Step())
    assert crossing.others == []
    assert crossing.sent == 4
    assert found.away is not None
    assert found.away.device.type == "cpu"


@pytest.mark.parametrize("away", [None, Curves()])
def test_a_step_with_perp_neg_reads_nothing_back(away: Curves | None) -> None:
    """Which pictures are pushed away from other views is known on the host."""
    prior: Any = Prior()
    condition = prompts.conditioner(prior, "mug", views=prompts.view_words("four", "none"), away=away)
    one = job(partial(sds, scale=3.0), condition)
    with Crossing() as crossing:
        loop.see(one, Step(), turntable(2), one.state.generator)
    assert crossing.others == []
    # Beside cameras, timesteps, noise, random number and prompts: views, shares, other views, then who is pushed how much.
    assert crossing.sent == (5 if away is None else 10)


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_vaes_scale_is_no_copy_that_waits(per_channel: bool) -> None:
    spread = SimpleNamespace(mode=lambda: torch.ones(2, 4, 1, 1, device=META))
    config: Any = (
        {"latents_mean": [0.1] * 4, "latents_std": [2.0] * 4} if per_channel else {"shift_factor": 0.5}
    )
    config = Config(config)
    vae: Any = SimpleNamespace(
        dtype=torch.float32, config=config, encode=lambda image: SimpleNamespace(latent_dist=spread),
        decode=lambda x: SimpleNamespace(sample=x),
    )  # fmt: skip
    space = Space(8, 4, 8, vae)
    with Crossing() as crossing:
        x = space.encode(torch.zeros(2, 3, 8, 8, device=META))
        space.decode(x)
    assert crossing.others == []
    assert crossing.sent == 2 * per_channel


class Config(dict[str, Any]):
    """Of a VAE."""

    scaling_factor = 0.18215


def test_parts_of_a_step_are_joined_without_waiting() -> None:
    picture = torch.zeros(1, 2, 2, 3, device=META)
    part = Render(
        picture, picture[..., :1], picture[..., :1], None, {"sparsity": torch.zeros((), device=META)}
    )
    with Crossing() as crossing:
        joined = Render.joined([part, part])
    assert (crossing.sent, crossing.others) == (1, [])
    assert joined.penalties["sparsity"].shape == ()


def test_asds_largest_shift_is_made_on_the_device() -> None:
    prior: Any = Prior()
    one = job(partial(asd, random_shift=False), prompts.conditioner(prior, "mug"))
    with Crossing() as crossing:
        loop.see(one, Step(), turntable(2), one.state.generator)
    assert (crossing.sent, crossing.others) == (5, [])


def test_poses_on_a_device_are_not_looked_at() -> None:
    cameras = turntable(3)
    with Crossing() as crossing:
        there = relative_cameras(cameras[:1].to(META), cameras.to(META))
    assert (crossing.sent, crossing.others) == (2, [])
    assert there.shape == (3, 4)
    bad = Cameras(torch.zeros(3, 4, 4), *list(vars(cameras).values())[1:])
    with pytest.raises(ValueError, match="away from the origin"):
        relative_cameras(cameras[:1], bad)


def test_the_pixels_centres_are_computed_once() -> None:
    cameras, made = turntable(2).to(META), list[str]()

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made.append(str(func))
            return func(*args, **(kwargs or {}))

    cameras.rays(24, 40)
    with Counting():
        first = cameras.rays(24, 40)
    assert not [name for name in made if "arange" in name]
    assert first[1].shape == (2, 24, 40, 3)
    # 3 wide, 1 high: the middle pixel looks along -z, and its neighbours a third of a picture to each side, 2/3 of the half.
    straight = Cameras(torch.eye(4)[None], torch.tensor([90.0]), *[torch.zeros(1)] * 3)
    _, directions = straight.rays(1, 3)
    sideways = directions[0, 0, :, 0] / -directions[0, 0, :, 2]
    torch.testing.assert_close(sideways, torch.tensor([-2.0, 0.0, 2.0]))


def test_gradients_are_scaled_only_where_they_have_a_bound() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    assert float(loop.clipped(parameters, 0.0)) == 5
    assert parameters[0].grad.tolist() == [3, 0]
    assert float(loop.clipped(parameters, 1.0)) == 5
    torch.testing.assert_close(parameters[1].grad, torch.tensor([0.0, 0.8]), rtol=1e-5, atol=0)


def test_adam_is_fused_where_torch_has_that_kernel() -> None:
    scene: Any = ImageScene(8, 8)
    fused = optimiser_of(scene)
    assert fused.defaults["fused"] is True
    assert optimiser_of(copy.deepcopy(scene).to("meta")).defaults["fused"] is None
    # The first step of Adam moves every parameter by its rate; a checkpoint of one kind continues with the other.
    plain = torch.optim.Adam(
        [{"params": [scene.image], "lr": 0.03}], betas=(0.9, 0.99), eps=1e-15, fused=False
    )
    for optimiser in (fused, plain):
        scene.image.grad = torch.ones_like(scene.image)
        before = scene.image.detach().clone()
        optimiser.step()
        torch.testing.assert_close(scene.image.detach(), before - 0.03)
    plain.load_state_dict(fused.state_dict())
    before = scene.image.detach().clone()
    plain.step()
    torch.testing.assert_close(scene.image.detach(), before - 0.03)


def test_cameras_are_copied_at_once_and_come_out_the_same() -> None:
    cameras = turntable(3)
    with Crossing() as crossing:
        there = cameras.to(META)
    assert (crossing.sent, crossing.others) == (1, [])
    for here, moved in zip(vars(cameras).values(), vars(there).values(), strict=True):
        assert (moved.shape, moved.dtype, moved.device) == (here.shape, here.dtype, META)
    assert cameras.to("cpu") is cameras


def test_packed_cameras_keep_every_value_and_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    cameras = turntable(3)
    mixed = Cameras(cameras.c2w.double(), *list(vars(cameras).values())[1:])
    # From "another device" and back, which changes nothing.
    monkeypatch.setattr("distill.cameras.send", lambda value, where: value)
    copy = mixed.to(META)
    for here, there in zip(vars(mixed).values(), vars(copy).values(), strict=True):
        assert there.dtype == here.dtype
        assert torch.equal(here, there)


@pytest.mark.parametrize("background", ["random", "grey", "white", (0.1, 0.2, 0.3)])
def test_a_scene_reads_nothing_back_and_sends_its_background(background: Any) -> None:
    scene = HashGridScene(
        levels=3, log2_table_size=8, backend="torch", background=background, progressive_levels=(1, 0.5)
    ).to(META)
    generator = torch.Generator().manual_seed(0)
    with Crossing() as crossing:
        scene.backdrop(torch.zeros(2, 4, 4, 3, device=META), generator)
    assert crossing.others == []
    assert crossing.sent == (background != "white")
    density, colour = scene.query(torch.zeros(5, 3, device=META))
    assert density.device == colour.device == META

    class Flat:
        def density(self, points: Tensor) -> Tensor:
            return points.sum(1)

    flat: Any = Flat()
    with Crossing() as crossing:
        finite_difference_normals(flat, torch.zeros(5, 3, device=META))
    assert (crossing.sent, crossing.others) == (1, [])


def test_levels_follow_a_checkpoint() -> None:
    make: Callable[[], HashGridScene] = lambda: HashGridScene(  # noqa: E731
        levels=4, log2_table_size=8, backend="torch", progressive_levels=(1, 0.5)
    )
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) * 0.5
    scene, other = make(), make()
    torch.nn.init.normal_(scene.grid)
    before = scene.query(points)[1]
    optimiser = optimiser_of(scene)
    scene.update(Step(1, 0.34), optimiser, torch.Generator())
    assert int(scene.active_levels) == 3
    assert not torch.equal(scene.query(points)[1], before)
    other.load_state_dict(scene.state_dict())
    assert torch.equal(other.query(points)[1], scene.query(points)[1])


@pytest.mark.parametrize("draw", [draw_depth, draw_normal])
def test_a_control_is_drawn_where_the_render_is(draw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from distill.conditions import control

    places: list[torch.device] = []

    def drawn(render: Render, cameras: Cameras) -> Tensor:
        places.append(cameras.c2w.device)
        return draw(render, cameras)

    monkeypatch.setitem(control.DRAWN, "probe", drawn)
    prior: Any = Prior()
    monkeypatch.setattr(Prior, "show", lambda self, pictures: pictures, raising=False)
    condition = control.controlled(prompts.conditioner(prior, "mug"), prior, "probe")
    picture = torch.zeros(2, 8, 8, 3, device=META)
    with Crossing() as crossing:
        condition(turntable(2), Step(), Render(picture, picture[..., :1], picture[..., :1], picture))
    assert places == [META]
    assert crossing.others == []


def test_a_drawn_timestep_outside_the_prior_is_refused_before_it_is_copied() -> None:
    prior: Any = Prior()
    one = job(partial(sds, scale=3.0), prompts.conditioner(prior, "mug"))
    wrong = loop.replace(one, timesteps=lambda progress, batch, generator: torch.full((batch,), 10))
    with pytest.raises(ValueError, match=r"\[0, 9\], got 10 to 10"):
        loop.see(wrong, Step(), turntable(2), wrong.state.generator)


def test_only_copies_from_the_cpu_to_cuda_are_pinned() -> None:
    class Drawn:
        """Stands for a tensor."""

        def __init__(self, where: str, pinned: bool = False) -> None:
            self.device, self.pinned = torch.device(where), pinned

        def pin_memory(self) -> Drawn:
            return Drawn("cpu", True)

        def to(self, where: torch.device, non_blocking: bool = False) -> tuple[str, bool, bool]:
            return where.type, self.pinned, non_blocking

    def copy(source: str, where: str) -> Any:
        drawn: Any = Drawn(source)
        return send(drawn, where)

    assert copy("cpu", "cuda") == ("cuda", True, True)
    assert copy("cpu", "cpu") == ("cpu", False, False)
    assert copy("cuda", "cpu") == ("cpu", False, False)
    assert copy("cuda", "cuda") == ("cuda", False, False)
