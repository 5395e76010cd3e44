"""What runs on CUDA against plain torch there, and against the CPU: kernels forward and backward, a prior, a step, a mesh.

The CPU's side is computed by its kernels where Warp can compile for the CPU, and in any case in plain torch, so that a GPU
machine with a slimmed Warp runs every test.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plain_torch
import pytest
import torch
from torch import Tensor

from distill import loop
from distill.cameras import orbit, turntable
from distill.guidance.terms import add_noise
from distill.job import State
from distill.priors import load_prior
from distill.priors.adapter import Student
from distill.renderers import HashGridScene, render
from distill.renderers.hashgrid import encode, hash_layout
from distill.renderers.march import Samples, composite, march
from distill.renderers.occupancy import occupancy_grid
from distill.run.assembly.assemble import assemble
from distill.run.config.compose import compose_config

pytestmark = pytest.mark.gpu

EMBEDDED = Path(__file__).resolve().parents[1] / "examples" / "embedded"

#: What a scene has by default: dense levels and hashed ones.
LAYOUT = hash_layout(levels=12, finest_resolution=128, base_resolution=8)


def _uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def _need(name: str) -> None:
    """Skip where an optional package cannot be used."""
    if name == "tinycudann":
        if importlib.util.find_spec(name) is None:
            pytest.skip("tinycudann is not installed")
        importlib.import_module(name)


@pytest.fixture(params=["torch", "kernels"])
def on_cpu(request: pytest.FixtureRequest) -> Callable[[], Any]:
    """Returns the context in which the CPU's side of a comparison is computed."""
    if request.param == "torch":
        return plain_torch.without_kernels
    if not plain_torch.kernels_on_the_cpu():
        pytest.skip("Warp cannot compile for the CPU here")
    return contextlib.nullcontext


def _encoded(points: Tensor, params: Tensor, backend: str, active: int | None) -> list[Tensor]:
    """Features, and the gradients of an uneven sum of them by points and parameters."""
    x, p = points.clone().requires_grad_(), params.clone().requires_grad_()
    out = encode(x, p, LAYOUT, backend, active)
    weight = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out)
    return [out.detach().cpu(), *(g.cpu() for g in torch.autograd.grad((out * weight).sum(), [x, p]))]


@pytest.mark.parametrize("active", [None, 5])
@pytest.mark.parametrize("backend", ["warp", "tinycudann"])
def test_encoding_agrees_with_torch_and_with_the_cpu(backend: str, active: int | None) -> None:
    _need(backend)
    points, params = _uniform(20_011, 3), _uniform(LAYOUT.num_params, seed=1) - 0.5
    there = _encoded(points.cuda(), params.cuda(), backend, active)
    plain = _encoded(points.cuda(), params.cuda(), "torch", active)
    here = _encoded(points, params, "torch", active)
    for found, other, cpu in zip(there, plain, here, strict=True):
        # Sums over many points, in another order each time.
        scale = float(cpu.abs().max())
        torch.testing.assert_close(found, other, atol=1e-5 * scale, rtol=1e-4)
        torch.testing.assert_close(found, cpu, atol=1e-5 * scale, rtol=1e-4)


def test_encoding_follows_the_stream_that_torch_is_on() -> None:
    points, params = _uniform(500_000, 3).cuda(), (_uniform(LAYOUT.num_params, seed=1) - 0.5).cuda()
    expected = encode(points, params, LAYOUT, "warp")
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        busy = torch.randn(4096, 4096, device="cuda")
        for _ in range(20):
            busy = (busy @ busy).tanh()
        late = points + 0 * busy.sum()
        found = encode(late, params, LAYOUT, "warp").sum(0)
    torch.cuda.synchronize()
    torch.testing.assert_close(found, expected.sum(0), atol=1e-2, rtol=1e-4)


def _rays() -> tuple[Tensor, Tensor, Tensor]:
    cameras = orbit(torch.tensor([30.0, 200.0]), torch.tensor([20.0, -10.0]), 3.2, 40.0)
    origins, directions = (part.view(-1, 3) for part in cameras.rays(48, 48))
    return origins, directions, _uniform(len(origins), seed=3)


def _grid() -> Any:
    grid = occupancy_grid(32)
    cells = (torch.arange(32) + 0.5) / 16 - 1
    grid.binaries[0] = torch.stack(torch.meshgrid(cells, cells, cells, indexing="ij")).norm(dim=0) < 0.6
    return grid


def _marched(device: str) -> Samples:
    origins, directions, jitter = (part.to(device) for part in _rays())
    return march(origins, directions, jitter, _grid().to(device), 0.054)


@pytest.mark.parametrize("against", ["torch", "kernels"])
def test_marching_agrees_with_the_cpu(against: str) -> None:
    if against == "torch":
        origins, directions, jitter = _rays()
        here = plain_torch.march(origins, directions, jitter, _grid(), 0.054)
    elif plain_torch.kernels_on_the_cpu():
        here = _marched("cpu")
    else:
        pytest.skip("Warp cannot compile for the CPU here")
    there = _marched("cuda")
    # A sample at a cell's edge may be on either side of it.
    assert abs(len(there.ray) - len(here.ray)) <= 0.002 * len(here.ray)
    same = here.counts == there.counts.cpu()
    assert same.float().mean() > 0.99
    kept = same[here.ray], same[there.ray.cpu()]
    torch.testing.assert_close(there.points.cpu()[kept[1]], here.points[kept[0]], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(there.distance.cpu()[kept[1]], here.distance[kept[0]], atol=1e-4, rtol=1e-4)


def test_compositing_agrees_with_torch() -> None:
    samples = _marched("cuda")
    count = len(samples.ray)
    given = (8 * _uniform(count, seed=4)).cuda(), _uniform(count, 5, seed=5).cuda()

    def run(made: Callable[..., Any], dtype: torch.dtype) -> list[Tensor]:
        density, values = (each.to(dtype).requires_grad_() for each in given)
        sums, opacity, *_ = made(density, values)
        weight = torch.linspace(-1, 1, sums.numel(), device="cuda", dtype=dtype).view_as(sums)
        loss = (sums * weight).sum() + (opacity**2).sum()
        return [each.double() for each in (sums, opacity, *torch.autograd.grad(loss, [density, values]))]

    found = run(lambda d, v: composite(d, v, samples), torch.float32)
    expected = run(lambda d, v: plain_torch.composite(d, v, samples), torch.float64)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-3)


def test_an_image_and_its_gradient_are_the_cpus(on_cpu: Callable[[], Any]) -> None:
    def run(device: str) -> list[Tensor]:
        scene = HashGridScene(blob_scale=20.0, seed=0).to(device)
        picture = render(scene, turntable(2), 40, 40, generator=torch.Generator().manual_seed(2))
        weight = torch.linspace(-1, 1, picture.rgb.numel(), device=device).view_as(picture.rgb)
        ((picture.rgb * weight).sum() + picture.opacity.square().sum()).backward()
        grads = [p.grad for group in scene.parameter_groups().values() for p in group.parameters]
        return [each.detach().cpu() for each in (picture.rgb, picture.opacity, *grads) if each is not None]

    with on_cpu():
        expected = run("cpu")
    for here, there in zip(expected, run("cuda"), strict=True):
        assert (here - there).norm() < 2e-3 * here.norm()


@pytest.mark.weights
@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.bfloat16, 3e-2), (torch.float16, 5e-3), (torch.float32, 2e-3)]
)
def test_a_prior_predicts_in_every_precision_what_it_does_on_the_cpu(
    dtype: torch.dtype, error: float
) -> None:
    x, noise = (
        2 * _uniform(2, 48, 16, 16) - 1,
        torch.randn(2, 48, 16, 16, generator=torch.Generator().manual_seed(1)),
    )
    t = torch.tensor([300, 800])

    def run(device: str, dtype: torch.dtype) -> Tensor:
        prior = load_prior("embedded", device, dtype)
        told = prior.embed(["a red mug, front view", ""])
        x_t = add_noise(prior, x.to(device), t.to(device), noise.to(device))
        return prior.predict_noise(x_t, t.to(device), told).cpu()

    here, there = run("cpu", torch.float32), run("cuda", dtype)
    assert there.dtype == torch.float32
    assert (here - there).norm() < error * here.norm()


def _noised(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 48, 16, 16, generator=generator)
    return x.cuda(), torch.randint(20, 980, (rows,), generator=generator).cuda()


def _agree(prior: Any, plain: Any, rows: int, seed: int, prompts: Sequence[str] = ("a red mug", "")) -> None:
    """A prediction of a prior with graphs against that of one without; only a library's choice of kernel may differ."""
    x, t = _noised(rows, seed)
    told = {name: value.repeat(rows, 1, 1)[:rows] for name, value in prior.embed(list(prompts)).items()}
    found, expected = prior.predict_noise(x, t, told), plain.predict_noise(x, t, told)
    assert (found - expected).norm() <= 1e-2 * expected.norm(), f"{rows} rows, seed {seed}"


@pytest.mark.weights
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_predictions_from_graphs_are_the_plain_ones(dtype: torch.dtype) -> None:
    first, second, plain = (
        load_prior("embedded", "cuda", dtype, graphs=graphs) for graphs in (None, True, False)
    )
    assert first.graphs is not None and second.graphs is not None and plain.graphs is None
    for seed in range(5):
        for rows in (2, 4):
            _agree(first, plain, rows, seed)
            _agree(second, plain, rows, seed + 10, ("a blue cube, back view", "a cat"))
    assert not first.graphs.failed
    assert len(first.graphs.recorded) == len(second.graphs.recorded) == 2
    # Results belong to the caller, on whatever stream the next prediction is made.
    x, t = _noised(2, 0)
    told = first.embed(["a red mug", ""])
    kept = first.predict_noise(x, t, told)
    before = kept.clone()
    with torch.cuda.stream(torch.cuda.Stream()):
        first.predict_noise(2 * x, t, told)
    torch.cuda.synchronize()
    assert torch.equal(kept, before)


@pytest.mark.weights
def test_a_lora_added_between_predictions_from_graphs_is_seen() -> None:
    prior, plain = (load_prior("embedded", "cuda", torch.float32, graphs=graphs) for graphs in (True, False))
    for seed in range(4):
        _agree(prior, plain, 2, seed)
    assert prior.graphs is not None and prior.graphs.recorded
    students = [
        Student(
            each, rank=2, alpha=2, targets=("to_q", "to_v"), cameras=True,
            generator=torch.Generator().manual_seed(0),
        )
        for each in (prior, plain)
    ]  # fmt: skip
    for student in students:
        for number, parameter in enumerate(student.low_rank()):
            generator = torch.Generator().manual_seed(number)
            with torch.no_grad():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    for seed in range(4):
        _agree(prior, plain, 2, seed)
        x, t = _noised(2, seed)
        told, cameras = prior.embed(["a red mug", ""]), turntable(2).to("cuda")
        own, other = (student.predict_noise(x, t, told, cameras) for student in students)
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(own, prior.predict_noise(x, t, told), atol=1e-2)
    assert not prior.graphs.recorded


@pytest.mark.weights
def test_weights_that_move_are_read_by_graphs_where_they_lie_now() -> None:
    prior, plain = (load_prior("embedded", "cuda", torch.float32, graphs=graphs) for graphs in (True, False))
    for factor in (1.0, 0.5):
        for each in (prior, plain):
            each.network.conv_in.weight.data = each.network.conv_in.weight.data * factor
        for seed in range(4):
            _agree(prior, plain, 2, seed)
        assert prior.graphs is not None and len(prior.graphs.recorded) == 1


@pytest.mark.weights
def test_novel_views_from_graphs_are_the_plain_ones() -> None:
    from distill.conditions.picture import EMBEDDED
    from distill.priors.novel_view.pipeline import NovelViewPipeline
    from distill.priors.novel_view.prior import NovelViewPrior

    pipeline = NovelViewPipeline.load(EMBEDDED, device=torch.device("cuda"), dtype=torch.float32)
    size = pipeline.size
    rgb, camera = _uniform(3, size, size), turntable(1).to("cuda")
    prior, plain = (NovelViewPrior.of(pipeline, rgb, camera, graphs=graphs) for graphs in (True, False))
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(2, *prior.shape, generator=generator).cuda()
        t = torch.randint(20, 980, (2,), generator=generator).cuda()
        cond, cameras = prior.embed(["", "a mug"]), turntable(2, 10.0 * seed).to("cuda")
        found, expected = (each.predict_noise(x, t, cond, cameras) for each in (prior, plain))
        assert (found - expected).norm() <= 1e-2 * expected.norm()
    assert prior.graphs is not None and len(prior.graphs.recorded) == 1


@pytest.mark.weights
def test_a_prediction_that_cannot_be_recorded_is_made_kernel_by_kernel(
    caplog: pytest.LogCaptureFixture,
) -> None:
    prior, plain = (load_prior("embedded", "cuda", torch.float32, graphs=graphs) for graphs in (True, False))
    # What reads a number back cannot be part of a graph.
    handle = prior.network.conv_in.register_forward_hook(
        lambda module, args, output: output * output.isfinite().any().item()
    )
    for seed in range(5):
        _agree(prior, plain, 2, seed)
    assert prior.graphs is not None and prior.graphs.failed
    assert len([one for one in caplog.records if "kernel by kernel" in one.getMessage()]) == 1
    handle.remove()
    # Nothing is left of the attempt: the stream, the allocator and the random numbers work.
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    torch.manual_seed(0)
    assert 0.4 < float(torch.rand(10_000, device="cuda").mean()) < 0.6
    other = load_prior("embedded", "cuda", torch.float32, graphs=True)
    for seed in range(5):
        _agree(other, plain, 2, seed)
    assert other.graphs is not None and len(other.graphs.recorded) == 1


@pytest.mark.weights
@pytest.mark.parametrize("guidance", ["sds", "csd", "asd", "vsd"])
def test_steps_on_cuda_are_those_on_the_cpu(guidance: str, on_cpu: Callable[[], Any]) -> None:
    def run(device: str) -> list[dict[str, float]]:
        options = [
            f"device={device}",
            f"guidance={guidance}",
            "prior_options.dtype=float32",
            "render.size=32",
        ]
        config = compose_config(["prompt=a red mug", *options])
        prior = load_prior("embedded", device, torch.float32)
        found = []

        def on_step(state: State, metrics: dict[str, float], picture: Any) -> bool:
            found.append(metrics)
            return state.step == 3

        loop.train(assemble(config, prior), on_step)
        return found

    with on_cpu():
        expected = run("cpu")
    for here, there in zip(expected, run("cuda"), strict=True):
        assert here["t"] == there["t"]
        # The cells to skip are looked at in points of each device's own.
        assert there["opacity"] == pytest.approx(here["opacity"], rel=0.02)
        assert there["grad_norm"] == pytest.approx(here["grad_norm"], rel=0.1)


def test_a_mesh_of_a_scene_on_cuda_is_the_cpus(on_cpu: Callable[[], Any]) -> None:
    from distill.export.colours import paint_of
    from distill.export.mesh import extract_mesh
    from distill.export.texture import bake_texture, colour_vertices

    def run(device: str) -> Any:
        scene = HashGridScene(blob_scale=20.0, seed=0).to(device)

        def view(cameras: Any, height: int, width: int) -> Any:
            with torch.no_grad():
                return render(scene, cameras, height, width)

        mesh = extract_mesh(scene.query, view, resolution=48, faces=2000, device=device)
        paint = paint_of(scene.query, view, picture_size=32, device=device)
        return mesh, colour_vertices(mesh, paint), bake_texture(mesh, paint, size=64)

    with on_cpu():
        here, *_ = run("cpu")
    there, coloured, textured = run("cuda")
    assert there.iso_level == pytest.approx(here.iso_level, rel=1e-2)
    size = abs(there.vertices).max(0)
    assert size == pytest.approx(abs(here.vertices).max(0), rel=0.02)
    assert coloured is not None and textured is not None


def test_updates_from_graphs_have_the_plain_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EMBEDDED)
    training = importlib.import_module("prior_training")
    train = importlib.import_module("train_prior")
    device, g = torch.device("cuda"), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    unet = train.make_unet().to(device, memory_format=torch.channels_last)
    abar = training.make_scheduler().alphas_cumprod.to(device)
    recorded = training.gradient_on(device)
    assert isinstance(recorded, training.Recorded)
    for _ in range(3):
        x, noise = torch.randn(2, 4, 48, 16, 16, generator=g).to(device)
        t = torch.randint(1000, (4,), generator=g).to(device)
        lesson = training.Lesson(x, noise, t, torch.randn(4, 20, 128, generator=g).to(device))
        loss = recorded(unet, unet, lesson, abar).clone()
        found = torch.cat([p.grad.flatten() for p in unet.parameters() if p.grad is not None])
        plain = training.gradient(unet, unet, lesson, abar)
        wanted = torch.cat([p.grad.flatten() for p in unet.parameters() if p.grad is not None])
        torch.testing.assert_close(loss, plain, rtol=1e-3, atol=0)
        # Sums in another order, in bfloat16.
        assert (found - wanted).norm() < 0.02 * wanted.norm() and found.isfinite().all()


def test_pictures_painted_on_cuda_are_those_of_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EMBEDDED)
    dataset, judge_pictures = (importlib.import_module(name) for name in ("dataset", "judge_pictures"))
    layers = np.random.default_rng(0).integers(0, 256, (32, 64, 64, 5), np.uint8)
    np.save(tmp_path / "layers.npy", layers)
    np.save(tmp_path / "rows.npy", np.array([[k % 16, 22.5 * k, 10.0] for k in range(32)], np.float32))

    def drawn(device: str) -> tuple[Any, Tensor]:
        pictures = dataset.Pictures(tmp_path, torch.Generator().manual_seed(0), device)
        batch, shared = pictures.draw(8), torch.Generator().manual_seed(1)
        shifted = judge_pictures.move(pictures.layers[:4].permute(0, 3, 1, 2).float() / 255, shared)
        return batch, judge_pictures.blur(shifted, shared).cpu()

    (here, blurred), (there, also) = drawn("cpu"), drawn("cuda")
    assert there.images.is_cuda and torch.equal(here.colour, there.colour)
    torch.testing.assert_close(there.images.cpu(), here.images)
    torch.testing.assert_close(also, blurred, atol=1e-4, rtol=1e-4)
