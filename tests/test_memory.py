"""What saves memory changes nothing else: views at a time, rendering twice, windows, a smaller step once memory is out."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import trimesh
from hydra.utils import instantiate
from tiny_pipelines import make
from torch import Tensor
from usual import optimiser_of, settings_of

import distill
from distill import loop
from distill.cameras import Cameras, orbit, turntable
from distill.conditions import prompts
from distill.contracts import Condition, Render, Step
from distill.forecast.cost import calls, cost
from distill.forecast.network import LiveBytes
from distill.forecast.rendering import rendered
from distill.guidance.sds import sds
from distill.guidance.vsd import VSD
from distill.job import Job, State
from distill.priors import load_prior
from distill.priors.exact import dirac
from distill.priors.source import find
from distill.renderers import HashGridScene, render
from distill.renderers.image import ImageScene
from distill.renderers.patch import patched
from distill.run.assembly.fit import fit, savings
from distill.run.assembly.scenes import scene_maker
from distill.run.checks.texts import bytes_of
from distill.run.config.compose import compose_config
from distill.samplers.cameras import ranges
from distill.samplers.schedules import Ramp
from distill.samplers.timesteps import uniform

TARGET = torch.linspace(0.1, 0.9, 3 * 8 * 8).view(3, 8, 8)
PRIOR = dirac({"mug": TARGET, "": torch.zeros_like(TARGET)})


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """As many CPU threads as a test asks for, whatever the environment says."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def squares(prior: Any, x: Tensor, cond: Condition, t: Tensor, noise: Tensor) -> Tensor:
    """A loss that draws nothing: the gradient of half the sum of squares, weighted by the camera's azimuth."""
    assert cond.cameras is not None
    return x * (1 + cond.cameras.azimuth_deg[:, None, None, None] / 360)


def one_step(at_once: int | None, take: Any, scene: Any, smaller: Any = None, **settings: Any) -> State:
    state = State(scene, optimiser_of(scene), torch.Generator().manual_seed(3))
    return loop.train(
        Job(
            state, PRIOR, squares, prompts.conditioner(PRIOR, "mug"), take, ranges(), uniform(PRIOR),
            settings_of(1, **{"batch": 5, "size": Ramp(8), "at_once": at_once, **settings}), frugal=smaller,
        )
    )  # fmt: skip


def resting() -> HashGridScene:
    """A small scene that no step moves."""
    return HashGridScene(levels=2, encoding_lr=0.0, mlp_lr=0.0)


def gradients(state: State) -> list[Tensor]:
    return [p.grad for p in state.parameters() if p.grad is not None]


def still(
    scene: Any, cameras: Cameras, height: int, width: int, *, generator: Any = None, **options: Any
) -> Render:
    """Rendering without random numbers."""
    return render(scene, cameras, height, width, penalties=("sparsity", "orientation"), **options)


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_views_at_a_time_leave_the_gradient_of_all_at_once(at_once: int) -> None:
    penalties = {"sparsity": Ramp(2.0), "orientation": Ramp(3.0)}
    first, second = resting(), resting()
    whole = gradients(one_step(None, partial(still, first), first, penalties=penalties))
    parts = gradients(one_step(at_once, partial(still, second), second, penalties=penalties))
    assert len(whole) == len(parts) >= 3
    for expected, found in zip(whole, parts, strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_conditions_cameras_and_pictures_come_apart_and_together() -> None:
    cameras = turntable(5)
    rows = {"told": torch.arange(5.0)[:, None]}
    cond = Condition(
        {"text": rows, "uncond": rows}, cameras=cameras, step=Step(progress=0.3, uniform=torch.arange(5.0))
    )
    parts = [cond.part(0, 2), cond.part(2, 4), cond.part(4, 5)]
    assert [part.text["told"].flatten().tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    again = Condition.joined(parts)
    assert again.cameras is not None
    assert torch.equal(again.text["told"], rows["told"])
    assert torch.equal(again.cameras.c2w, cameras.c2w)
    assert torch.equal(again.step.uniform, cond.step.uniform)  # type: ignore[arg-type]
    assert again.prompts.keys() == {"text", "uncond"}
    assert again.step.progress == 0.3
    scene = HashGridScene(levels=2)
    whole = render(scene, cameras, 8, 8, penalties=("sparsity",))
    joined = Render.joined([render(scene, part, 8, 8, penalties=("sparsity",)) for part in cameras.split(2)])
    torch.testing.assert_close(joined.rgb, whole.rgb)
    torch.testing.assert_close(joined.penalties["sparsity"], whole.penalties["sparsity"])
    assert joined.normal is None


def test_a_student_learns_the_same_from_views_at_a_time(latent_folder: Path) -> None:
    learnt = []
    for at_once in (None, 1, 2):
        prior = load_prior(latent_folder, dtype=torch.float32)
        loss = VSD(prior, torch.Generator().manual_seed(0), warmup=0)
        cond = prompts.conditioner(prior, "a mug")(turntable(3), Step())
        x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        error = loss.learn(prior, x, cond, torch.Generator().manual_seed(2), at_once)
        learnt.append((error, [p.grad for p in loss.student.trainable()]))
    for error, grads in learnt[1:]:
        assert error == pytest.approx(learnt[0][0], rel=1e-5)
        for expected, found in zip(learnt[0][1], grads, strict=True):
            assert (expected is None) == (found is None)
            if expected is not None and found is not None:
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("shading", ["albedo", "lambertian"])
def test_rendering_twice_gives_the_same_gradient_for_less_memory(shading: str) -> None:
    scene = HashGridScene(levels=4, background="random")
    found = []
    for recompute in (False, True):
        g = torch.Generator().manual_seed(5)
        scene.zero_grad(set_to_none=True)
        with LiveBytes() as live:
            seen = render(
                scene, turntable(2), 24, 24, generator=g, shading=shading, penalties=("smoothness",), chunk_rays=128,
                recompute=recompute,
            )  # fmt: skip
            (seen.rgb.square().sum() + seen.penalties["smoothness"]).backward()
        grads = [p.grad.clone() for p in scene.parameters() if p.grad is not None]
        found.append((seen.rgb.detach(), grads, g.get_state(), live.peak))
    (rgb, grads, state, peak), (again, twice, after, less) = found
    assert torch.equal(rgb, again)
    assert torch.equal(state, after)
    for expected, other in zip(grads, twice, strict=True):
        torch.testing.assert_close(other, expected, rtol=1e-4, atol=1e-6)
    assert less < 0.5 * peak


def test_a_window_casts_the_rays_of_its_part_of_the_picture() -> None:
    cameras = orbit(torch.tensor([20.0, 200.0]), torch.tensor([10.0, -30.0]), 3.0, torch.tensor([40.0, 60.0]))
    origins, directions = cameras.rays(32, 32)
    top, left, side = 5, 18, 8
    seen = cameras.window(left / 32, 1 - (top + side) / 32, side / 32)
    inside, towards = seen.rays(side, side)
    torch.testing.assert_close(inside, origins[:, top : top + side, left : left + side])
    torch.testing.assert_close(towards, directions[:, top : top + side, left : left + side])


def test_a_patch_is_the_picture_there_and_coarse_elsewhere() -> None:
    scene = HashGridScene(levels=4, background="random")
    scene.update(Step(), optimiser_of(scene), torch.Generator().manual_seed(0))
    drawn: list[tuple[Cameras, int]] = []

    def take(cameras: Cameras, height: int, width: int, **options: Any) -> Render:
        drawn.append((cameras, height))
        return render(scene, cameras, height, width, **options)

    g = torch.Generator().manual_seed(8)
    seen = patched(take, 16, 8)(turntable(2), 48, 48, generator=g)
    assert [height for _, height in drawn] == [8, 16]
    assert seen.rgb.shape == (2, 48, 48, 3)
    (carries,) = torch.autograd.grad(seen.rgb.sum(), scene.grid, retain_graph=True)
    assert carries.abs().max() > 0
    # Where the window was: the same draws say so again.
    again = torch.Generator().manual_seed(8)
    top, left = torch.randint(48 - 16 + 1, (2,), generator=again).tolist()
    inside = render(scene, drawn[1][0], 16, 16, generator=again)
    torch.testing.assert_close(seen.rgb[:, top : top + 16, left : left + 16], inside.rgb)
    # A corner shows the background, of one colour in the window and around it.
    corners = seen.rgb[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    torch.testing.assert_close(corners, corners[:, :1].expand_as(corners), rtol=0, atol=2e-3)
    whole = patched(take, 16, 8)(turntable(2), 48, 48)
    torch.testing.assert_close(whole.rgb, render(scene, turntable(2), 48, 48).rgb)


def test_a_step_out_of_memory_is_taken_again_with_half_the_views(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[tuple[str, int]] = []

    def flat() -> ImageScene:
        return ImageScene(8, 8, lr=0.0)

    def take(name: str, most: int, cameras: Cameras, *rest: Any, **options: Any) -> Render:
        asked.append((name, len(cameras)))
        if len(cameras) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return scene.render(cameras, *rest, **options)

    scene = flat()
    with caplog.at_level(logging.WARNING):
        tight = one_step(None, partial(take, "render", 3), scene, partial(take, "smaller", 3))
    assert asked == [("render", 5), ("smaller", 2), ("smaller", 2), ("smaller", 1)]
    assert "step 0 did not fit in memory; continuing with 2 views at a time" in caplog.text
    other = flat()
    roomy = one_step(None, other.render, other)
    torch.testing.assert_close(gradients(tight), gradients(roomy))
    asked.clear()
    with pytest.raises(loop.OutOfMemory, match=r"step 0 .* not even with 2 views at a time; .*max_vram="):
        one_step(None, partial(take, "render", 1), scene, partial(take, "smaller", 1))
    assert asked == [("render", 5), ("smaller", 2)]


@dataclass
class Student:
    """A learner that once, in its second call, runs out of memory; keeps how many pictures it was shown, and how many at a time."""

    shown: list[tuple[int, int | None]] = field(default_factory=list)

    def learn(
        self, prior: Any, x: Tensor, cond: Condition, generator: Any, at_once: int | None = None
    ) -> float:
        self.shown.append((len(x), at_once))
        if len(self.shown) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return float(len(self.shown))

    def save(self, folder: Path) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        pass


def three_steps(student: Student, smaller: bool) -> tuple[State, list[float]]:
    scene, losses = ImageScene(8, 8, lr=0.0), list[float]()
    generator = torch.Generator().manual_seed(3)
    state = State(scene, optimiser_of(scene), generator, learner=student)

    def note(_: State, metrics: dict[str, float], picture: Render) -> None:
        losses.append(metrics["learner_loss"])

    with suppress(loop.OutOfMemory):
        loop.train(
            Job(
                state, PRIOR, squares, prompts.conditioner(PRIOR, "mug"), scene.render, ranges(), uniform(PRIOR),
                settings_of(3, batch=4, at_once=9, size=Ramp(8)), frugal=scene.render if smaller else None,
            ),
            note,
        )  # fmt: skip
    return state, losses


def test_a_student_out_of_memory_learns_once_more_with_half_the_views() -> None:
    student = Student()
    _, losses = three_steps(student, True)
    assert student.shown == [(4, 4), (4, 4), (4, 2), (4, 2)]
    assert losses == [1.0, 3.0, 4.0]


def test_what_did_not_fit_leaves_the_random_numbers_of_the_step_before() -> None:
    stopped, losses = three_steps(Student(), False)
    assert (stopped.step, losses) == (1, [1.0])
    scene = ImageScene(8, 8, lr=0.0)
    whole = one_step(None, scene.render, scene, batch=4)
    assert torch.equal(stopped.generator.get_state(), whole.generator.get_state())


@pytest.mark.slow
def test_a_run_out_of_memory_keeps_a_checkpoint_and_names_the_options(
    latent_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from distill.cli import main
    from distill.priors.diffusion import DiffusionPrior

    whole = DiffusionPrior.encode
    calls = []

    def encode(self: DiffusionPrior, image: Tensor) -> Tensor:
        calls.append(len(image))
        if len(calls) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(self, image)

    monkeypatch.setattr(DiffusionPrior, "encode", encode)
    folder = tmp_path / "run"
    command = [
        "a mug",
        f"prior={latent_folder}",
        f"output_dir={folder}",
        "iterations=5",
        "render.size=8",
        "render.batch=2",
    ]
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 1
    assert calls == [2, 2, 2, 2, 1]
    assert "step 3 did not fit the device's memory" in capsys.readouterr().err
    assert list((folder / "checkpoints").glob("*3*"))
    monkeypatch.undo()
    monkeypatch.setattr(DiffusionPrior, "encode", whole)
    advised = [
        "render.at_once=1",
        "render.recompute=true",
        "prior_options.checkpointing=true",
        "max_vram=12GB",
    ]
    with pytest.raises(SystemExit) as finished:
        main([*command, "resume=true", "export.enabled=false", *advised])
    assert finished.value.code == 0
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == list(
        range(5)
    )


def test_normals_and_opacity_as_a_latent() -> None:
    class Small:
        shape = (4, 2, 2)

    prior: Any = Small()

    normal = torch.tensor([0.6, 0.0, 0.8]).expand(1, 4, 4, 3)
    opacity = torch.full((1, 4, 4, 1), 0.5)
    x = loop.as_latent(Render(torch.zeros(1, 4, 4, 3), opacity, opacity, normal), prior)
    expected = torch.tensor([0.3, 0.0, 0.4, 0.0]).view(1, 4, 1, 1).expand(1, 4, 2, 2)
    torch.testing.assert_close(x, expected)


def test_a_latent_start_asks_no_vae_until_it_is_over(
    latent_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distill.priors.diffusion import DiffusionPrior

    whole, steps = DiffusionPrior.encode, list[int]()

    def encode(self: DiffusionPrior, image: Tensor) -> Tensor:
        steps.append(len(image))
        return whole(self, image)

    monkeypatch.setattr(DiffusionPrior, "encode", encode)
    told: dict[str, Any] = {"iterations": 5, "render.size": 16, "render.batch": 1, "export.enabled": False}
    asset = distill.generate(
        "a mug", prior=latent_folder, output_dir=tmp_path / "run", **told, **{"render.latent_until": 0.5}
    )
    assert len(steps) == 2  # steps 3 and 4: progress 0.6 and 0.8
    assert asset.manifest["skipped_steps"] == 0
    with pytest.raises(ValueError, match=r"needs a scene that fills space and a prior whose latent has 4"):
        distill.generate("a red mug", output_dir=tmp_path / "no", **told, **{"render.latent_until": 0.5})


@pytest.mark.slow
def test_a_forecast_counts_rendering_by_its_rays(latent_folder: Path) -> None:
    def rendering(*options: str) -> int:
        config = compose_config([f"prior={latent_folder}", "prompt=a mug", "render.batch=2", *options])
        return cost(config, find(latent_folder), torch.device("cpu")).rendering

    small = rendering("render.size=64")
    # In proportion except for the parameters' gradients, which are there once.
    assert rendering("render.size=128") == pytest.approx(4 * small, rel=0.1)
    assert rendering("render.size=128", "render.at_once=1") == pytest.approx(2 * small, rel=0.1)
    assert rendering("render.size={start:16,end:128}") == pytest.approx(4 * small, rel=0.1)
    assert rendering("render.size=512", "render.patch=64") == pytest.approx(small, rel=1e-3)
    again = rendering("render.size=512", "render.recompute=true", "render.chunk_rays=4096")
    assert again < rendering("render.size=512") / 10
    # Against a real step with every cell occupied.
    scene = HashGridScene()
    with LiveBytes() as live:
        render(scene, turntable(2), 64, 64, generator=torch.Generator().manual_seed(0)).rgb.sum().backward()
    assert small == pytest.approx(live.peak, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("penalty", ["orientation", "z_variance"])
@pytest.mark.parametrize("threads", [1, 2], indirect=True)
def test_a_forecast_sees_what_penalties_keep_beside_a_large_grid(
    latent_folder: Path, penalty: str, threads: int
) -> None:
    # The gradient of a grid of 2^19 entries is far more than what few rays keep.
    options = ["scene.log2_table_size=19", "scene.march_steps=64", "render.size=96", f"penalties.{penalty}=1"]
    config = compose_config([f"prior={latent_folder}", "prompt=a mug", "render.batch=1", *options])
    found = cost(config, find(latent_folder), torch.device("cpu")).rendering
    scene: Any = instantiate(config.scene, _convert_="all")(seed=0)
    with LiveBytes() as live:
        seen = scene.render(
            turntable(1), 96, 96, generator=torch.Generator().manual_seed(0), penalties=[penalty]
        )
        (seen.rgb.sum() + seen.penalties[penalty]).backward()
    assert 0.99 * live.peak <= found < 1.2 * live.peak


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2], indirect=True)
def test_a_forecast_tells_the_first_step_from_a_full_cube(latent_folder: Path, threads: int) -> None:
    options = ["scene.blob_scale=20", "scene.march_steps=96", "scene.log2_table_size=18", "render.size=96"]
    config = compose_config([f"prior={latent_folder}", "prompt=a mug", "render.batch=1", *options])
    found = cost(config, find(latent_folder), torch.device("cpu"))
    scene: Any = instantiate(config.scene, _convert_="all")(seed=0)

    def kept() -> int:
        with LiveBytes() as live:
            scene.render(
                turntable(1), 96, 96, generator=torch.Generator().manual_seed(0)
            ).rgb.sum().backward()
        scene.zero_grad(set_to_none=True)
        return live.peak

    assert found.rendering == pytest.approx(kept(), rel=0.1)
    scene.update(Step(), optimiser_of(scene), torch.Generator().manual_seed(0))
    assert scene.occupancy.binaries.float().mean() < 0.2
    assert found.beginning == pytest.approx(kept(), rel=0.15)
    # A copy for each thread.
    gradients = threads * sum(p.numel() * p.element_size() for p in scene.parameters())
    assert found.beginning - gradients < (found.rendering - gradients) / 3
    assert found.peak - found.first_peak == found.rendering - found.beginning


@pytest.mark.slow
def test_a_forecast_counts_every_particle_and_the_moving_average(latent_folder: Path) -> None:
    def scene(*options: str) -> int:
        config = compose_config([f"prior={latent_folder}", "prompt=a mug", *options])
        return cost(config, find(latent_folder), torch.device("cpu")).scene

    one = scene("optimiser.ema=0")
    assert scene("optimiser.ema=0", "particles=3") == 3 * one
    made: Any = scene_maker(compose_config([f"prior={latent_folder}", "prompt=a mug"]))(seed=0)
    assert scene("optimiser.ema=0.99") - one == sum(4 * p.numel() for p in made.parameters())


@pytest.mark.parametrize(
    ("loss", "plain", "away"), [("sds", [4], [10]), ("asd", [6], [12]), ("vsd", [4, 2], [10, 2])]
)
def test_perp_neg_asks_for_three_rows_more_for_each_under_the_prompt(
    loss: str, plain: list[int], away: list[int]
) -> None:
    for enabled, rows in (("false", plain), ("true", away)):
        config = compose_config(
            ["prompt=a mug", f"guidance={loss}", "view_words=four", f"perp_neg.enabled={enabled}"]
        )
        assert calls(config, 2)[0] == rows


@pytest.mark.slow
def test_max_vram_chooses_the_least_that_fits(latent_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    def chosen(room: str) -> Any:
        config = compose_config([*whole, f"max_vram={room}"])
        fit(config, find(latent_folder), torch.device("cpu"))
        needed = cost(config, find(latent_folder), torch.device("cpu")).peak
        assert needed <= 0.9 * bytes_of(room)
        return config.render.at_once, config.render.recompute, config.prior_options.checkpointing

    whole = [
        f"prior={latent_folder}",
        "prompt=a mug",
        "render.batch=4",
        "render.size=128",
        "render.chunk_rays=2048",
    ]
    assert chosen("12GB") == (None, False, False)
    megabytes = cost(compose_config(whole), find(latent_folder), torch.device("cpu")).peak / 1e6
    with caplog.at_level(logging.INFO):
        assert chosen(f"{megabytes:.0f}MB") == (2, False, False)
    assert "GB by the forecast, with render.at_once=2" in caplog.text
    assert chosen(f"{megabytes / 5:.0f}MB") == (1, True, False)
    with pytest.raises(ValueError, match=r"by the forecast whatever is saved, .* max_vram=1MB"):
        chosen("1MB")


def test_max_vram_with_a_loaded_prior_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_vram= chooses how a prior is loaded, and this one is loaded"):
        distill.generate("a red mug", prior=load_prior(), max_vram="12GB")


def test_a_vae_that_cannot_compute_again_is_said_and_left_alone(tmp_path: Path) -> None:
    make("sana").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"VAE, AutoencoderDC, cannot compute its activations again"):
        load_prior(tmp_path, checkpointing=True)
    config = compose_config([f"prior={tmp_path}", "prompt=a mug", "render.batch=2"])
    changes = list(savings(config, find(tmp_path)))
    assert changes == [{}, {"render.at_once": 1}, {"render.recompute": True}]


@pytest.mark.parametrize(
    ("text", "expected"), [("12GB", 12e9), ("1.5 GiB", 1.5 * 2**30), ("800mb", 8e8), ("2MiB", 2**21)]
)
def test_sizes_are_read(text: str, expected: float) -> None:
    assert bytes_of(text) == expected


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("max_vram=12", "max_vram must be a size such as 12GB, got '12'"),
        ("max_vram=lots", "max_vram must be a size such as 12GB"),
        ("render.at_once=0", "render.at_once must be an integer of at least 1 or null, got 0"),
        ("render.latent_until=2", r"render.latent_until must be a number in \[0, 1\], got 2"),
    ],
)
def test_bad_options_are_one_line(option: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        compose_config(["prompt=a mug", option])


def test_a_patch_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"render\.patch must be an integer of at least 8 or null, got 4"):
        distill.generate("a red mug", output_dir=tmp_path / "run", **{"render.patch": 4})


@pytest.mark.slow
def test_sds_still_works_in_parts_on_an_exact_prior() -> None:
    g = torch.Generator().manual_seed(0)
    scene = ImageScene(8, 8, lr=0.02, seed=g)
    state = State(scene, optimiser_of(scene), g)
    loop.train(
        Job(
            state, PRIOR, partial(sds, scale=1.0), prompts.conditioner(PRIOR, "mug"), scene.render, ranges(),
            uniform(PRIOR), settings_of(300, batch=2, at_once=1, size=Ramp(8), final_lr=0.01),
        )
    )  # fmt: skip
    assert (scene.image[0].movedim(-1, 0) - TARGET).abs().max().item() < 0.01


def test_a_forecast_counts_every_update_of_vsds_copy(latent_folder: Path) -> None:
    def operations(updates: int) -> int:
        options = ["prompt=a red mug", "guidance=vsd", f"guidance.updates={updates}"]
        return cost(compose_config(options), find(latent_folder), torch.device("cpu")).operations

    one, two, three = map(operations, (1, 2, 3))
    assert two - one == three - two > 0


@pytest.mark.parametrize(
    ("options", "most"),
    [
        (["mesh=ball.glb", "render.size=96"], 1.5),
        (["mesh=ball.glb", "render.size=96", "scene.samples=4"], 1.5),
        (["mesh=ball.glb", "render.size=96", "scene.material=pbr"], 1.5),
        (["scene=image", "render.size=256"], 1.6),
    ],
    ids=["plain", "samples", "pbr", "image"],
)
def test_a_forecast_counts_the_rendering_of_scenes_without_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], most: float
) -> None:
    monkeypatch.chdir(tmp_path)
    trimesh.creation.icosphere(subdivisions=3).export("ball.glb")
    config = compose_config(["prompt=a red mug", "render.batch=2", *options])
    found, size = rendered(config, 2, torch.device("cpu")), int(config.render.size)
    scene = scene_maker(config)(seed=0)
    with LiveBytes() as live:
        seen = scene.render(turntable(2), size, size, generator=torch.Generator().manual_seed(0))
        seen.rgb.sum().backward()
    assert live.peak <= found.full <= most * live.peak


@pytest.mark.parametrize("resolution", [32, 64, 128])
def test_a_forecast_counts_rays_and_cells_however_fine_the_cells_are(resolution: int) -> None:
    options = ["render.size=64", "scene.log2_table_size=8", f"scene.occupancy_resolution={resolution}"]
    config, views = compose_config(["prompt=a red mug", *options]), 64
    found = rendered(config, views, torch.device("cpu"))
    scene: Any = scene_maker(config)(seed=0)

    def of_all_views() -> int:
        scene.render(turntable(1), 8, 8)  # the cells' bytes are made once
        with LiveBytes() as live:
            seen = scene.render(turntable(1), 64, 64, generator=torch.Generator().manual_seed(0))
            seen.rgb.sum().backward()
        return views * live.peak

    assert found.full == pytest.approx(of_all_views(), rel=0.1)
    with LiveBytes() as update:
        scene.update(Step(), optimiser_of(scene), torch.Generator().manual_seed(0))
    assert update.peak > 8 * resolution**3
    assert found.beginning == pytest.approx(max(of_all_views(), update.peak), rel=0.25)
    learnt = sum(p.numel() for p in scene.parameters())
    cells = sum(b.numel() * b.element_size() for b in scene.buffers())
    assert found.parameters == 4 * 4 * learnt + cells


def test_a_textured_mesh_that_does_not_fit_is_rendered_twice(
    latent_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trimesh.creation.icosphere(subdivisions=3).export("ball.glb")
    options = ["prompt=a red mug", "mesh=ball.glb", "render.size=256", "scene.samples=8"]
    source, device = find(latent_folder), torch.device("cpu")
    whole = cost(compose_config(options), source, device).peak
    config = compose_config([*options, f"max_vram={round(whole / 2e6)}MB"])
    fit(config, source, device)
    assert config.render.recompute or config.render.at_once
    assert cost(config, source, device).peak <= whole / 2
