"""What a training step copies to a GPU and reads from it, counted without one: its tensors are torch's ``meta`` device's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distill import loop, transfer
from distill.cameras import Cameras, turntable
from distill.conditions import prompts
from distill.conditions.control import draw_depth, draw_normal
from distill.conditions.perp_neg import Curves
from distill.contracts import Render, Step
from distill.guidance.asd import asd
from distill.guidance.csd import csd
from distill.guidance.sds import sds
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
        # A tensor of one number is an argument of a kernel.
        leaves = tree_leaves((args, kwargs, out))
        seen = {leaf.device.type for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()}
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


def job(guidance: Any, condition: Any) -> loop.Job:
    generator = torch.Generator().manual_seed(0)
    scene: Any = ImageScene(8, 8, seed=generator).to(META)
    state = loop.State(scene, loop.make_optimiser(scene), generator)
    prior: Any = Prior()
    settings = loop.Settings(4, batch=2, size=Ramp(8))
    return loop.Job(state, prior, guidance, condition, scene.render, ranges(), uniform(prior), settings)


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
        seen = loop.see(one, Step(), cameras)
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
    assert crossing.sent == 5
    assert found.away is not None
    assert found.away.device == META


def test_cameras_are_copied_at_once_and_come_out_the_same() -> None:
    cameras = turntable(3)
    with Crossing() as crossing:
        there = cameras.to(META)
    assert (crossing.sent, crossing.others) == (1, [])
    for here, copy in zip(vars(cameras).values(), vars(there).values(), strict=True):
        assert (copy.shape, copy.dtype, copy.device) == (here.shape, here.dtype, META)
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
    optimiser = loop.make_optimiser(scene)
    scene.update(Step(1, 0.3), optimiser, torch.Generator())
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
        loop.see(wrong, Step(), turntable(2))


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
