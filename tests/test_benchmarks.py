"""The step's benchmark: what it counts as the network's own, what it writes, and the size of the prior it is meant for."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import make
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from distill.contracts import Step
from distill.forecast.cost import cost
from distill.forecast.network import calls_of
from distill.priors import load_prior
from distill.priors.source import find
from distill.run.assembly.assemble import assemble
from distill.run.assembly.fit import fit
from distill.run.checks.texts import bytes_of
from distill.run.config.compose import compose_config

FOLDER = Path(__file__).parents[1] / "examples" / "benchmarks"
LOSSES = ("sds", "csd", "asd", "vsd")
#: As the cards of Stable Diffusion 1.5 and CLIP ViT-L/14 have them.
PUBLISHED = {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Imports a script of the folder."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    make("stable_diffusion").save_pretrained(folder)
    return folder


def rows_of(report: str) -> list[dict[str, str]]:
    """A Markdown table's rows by column."""
    titles, rule, *rows = (
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in report.splitlines()
        if line.startswith("|")
    )
    assert set(rule) == {"---"}
    return [dict(zip(titles, row, strict=True)) for row in rows]


def check(
    report: str, device: str, losses: tuple[str, ...], sizes: tuple[int, ...], backends: set[str]
) -> None:
    """Whether a report has a row for each combination, with figures that agree with each other."""
    assert report.startswith(device)
    rows = rows_of(report)
    expected = {(loss, str(size), each) for loss in losses for size in sizes for each in backends}
    chosen = [(row["loss"], row["pixels"], row["field"]) for row in rows]
    assert len(chosen) == len(expected)
    assert set(chosen) == expected
    for row in rows:
        learner = row.pop("learner")
        assert (learner != "") == (row["loss"] == "vsd")
        found = {name: float(value) for name, value in list(row.items())[3:]}
        assert all(0 < value < float("inf") for value in found.values()), row
        assert found["encode back"] < found["backward"]
        parts = ("occupancy", "render", "encode", "prior and loss", "backward", "optimiser")
        total = sum(found[part] for part in parts) + float(learner or 0)
        # Medians of few steps need not add up, but the step holds its job.
        assert found["step"] > 0.8 * total
        assert found["step / network"] == pytest.approx(found["step"] / found["network"], rel=0.02)
        vae = found["encode"] + found["encode back"]
        without = (found["step"] - vae) / found["network"]
        assert found["without VAE / network"] == pytest.approx(without, rel=0.02)


def test_the_prior_that_is_written_has_the_published_size(scripts: Callable[[str], Any]) -> None:
    random_prior = scripts("random_prior")
    with torch.device("meta"):
        parts = {name: getattr(random_prior, name)() for name in PUBLISHED}
    assert {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()} == PUBLISHED


def test_a_written_prior_is_one_that_can_be_loaded(scripts: Callable[[str], Any], tmp_path: Path) -> None:
    random_prior = scripts("random_prior")
    random_prior.write(tmp_path / "small", shrink=8)
    prior = load_prior(tmp_path / "small", dtype=torch.bfloat16)
    assert (prior.image_size, prior.num_timesteps, prior.schedule.prediction) == (512, 1000, "epsilon")
    weights = list(prior.network.parameters())
    # Convolutions and projections shrink with the square of the widths.
    assert sum(p.numel() for p in weights) == pytest.approx(PUBLISHED["unet"] / 64, rel=0.02)
    # All but the last layers.
    assert sum(p.dtype == torch.bfloat16 for p in weights) == len(weights) - 4
    told = prior.embed(["a red mug, side view", ""])["encoder_hidden_states"]
    assert told.shape == (2, 77, 768 // 8)
    assert not torch.equal(told[0], told[1])
    with pytest.raises(ValueError, match="holds files; name another"):
        random_prior.write(tmp_path / "small", shrink=8)
    with pytest.raises(ValueError, match="must be one of 1, 2, 4, 8"):
        random_prior.write(tmp_path / "odd", shrink=3)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_network_alone_computes_what_the_loss_has_it_compute(
    scripts: Callable[[str], Any], tiny: Path, loss: str
) -> None:
    one_step = scripts("one_step")
    prior = load_prior(tiny, dtype=torch.float32, image_size=64)
    config = compose_config(["prompt=a red mug", f"prior={tiny}", f"guidance={loss}", "device=cpu"])
    job, g, batch = assemble(config, prior), torch.Generator().manual_seed(0), 2
    learner = job.state.learner
    views = job.cameras(0.0, batch, g)
    cond = job.condition(views, Step(uniform=torch.rand(batch, generator=g)))
    x, noise = torch.randn(2, batch, 4, 8, 8, generator=g)
    t = torch.tensor([300, 600])
    # The counter knows nothing of the fused attention that a CPU would take.
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as asked:
            with torch.no_grad():
                job.guidance(prior, x, cond, t, noise)
            if learner:
                learner.learn(prior, x, cond, g)
        rows = [2 * batch] if learner else calls_of(job.guidance, batch)
        with FlopCounterMode(display=False) as alone:
            one_step.network_alone(prior, learner, rows, x, t, cond)
    assert alone.get_total_flops() == asked.get_total_flops() > 0


def run(script: str, *options: object) -> str:
    command = [sys.executable, FOLDER / script, *options]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_table_of_steps_on_the_cpu(scripts: Callable[[str], Any], tiny: Path, tmp_path: Path) -> None:
    said = run(
        "step.py", "--prior", tiny, "--device", "cpu", "--dtype", "float32", "--guidance", "vsd", "asd",
        "--size", 16, 32, "--backend", "all", "--hold", "--warm-steps", 0, "--steps", 2,
        "--output", tmp_path / "step.md", "--set", "prior_options.image_size=64", "scene.levels=4", "scene.log2_table_size=12",
    )  # fmt: skip
    report = (tmp_path / "step.md").read_text()
    assert said.endswith(report)
    name = scripts("measuring").hardware(torch.device("cpu")).partition(", cpu")[0]
    check(report, name, ("vsd", "asd"), (16, 32), {"fused", "warp"})
    assert "float32, which sees 64 pixels; batch 1; milliseconds, medians of 2 steps" in report


def test_backends_are_those_that_can_run_here(scripts: Callable[[str], Any]) -> None:
    step, cpu = scripts("step"), torch.device("cpu")
    assert step.usable(cpu, "all") == ["fused", "warp"]
    assert step.usable(cpu, "auto") == ["fused"]
    assert step.usable(cpu, "torch") == ["torch"]
    with pytest.raises(ValueError, match="'tinycudann' expects CUDA"):
        step.usable(cpu, "tinycudann")


@pytest.mark.parametrize(
    "option",
    [
        "particles=2",
        "render.at_once=1",
        "render.patch=16",
        "render.latent_until=0.5",
        "prior_options.control=depth",
    ],
)
def test_what_the_measured_step_does_not_do_is_refused(scripts: Callable[[str], Any], option: str) -> None:
    config = compose_config(["prompt=a red mug", option], loaded=True)
    with pytest.raises(
        ValueError, match=f"steps are measured without {option.partition('=')[0]}=; leave it out"
    ):
        scripts("one_step").measure(config, None, 0, 1)


@pytest.mark.gpu
def test_a_table_of_steps_at_the_published_size(scripts: Callable[[str], Any], tmp_path: Path) -> None:
    run("random_prior.py", tmp_path / "sd15")
    prior = load_prior(tmp_path / "sd15", "cuda", torch.bfloat16)
    assert sum(p.numel() for p in prior.network.parameters()) == PUBLISHED["unet"]
    assert sum(p.numel() for p in prior.space.vae.parameters()) == PUBLISHED["vae"]
    del prior
    torch.cuda.empty_cache()
    run(
        "step.py", "--prior", tmp_path / "sd15", "--device", "cuda", "--dtype", "bfloat16", "--guidance", *LOSSES,
        "--size", 64, 256, 512, "--backend", "all", "--hold", "--warm-steps", 1, "--steps", 16,
        "--output", tmp_path / "step.md",
    )  # fmt: skip
    backends = set(scripts("step").usable(torch.device("cuda"), "all"))
    report = (tmp_path / "step.md").read_text()
    check(report, torch.cuda.get_device_name(), LOSSES, (64, 256, 512), backends)


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "room"), [("sds", "8GB"), ("vsd", "10GB")])
def test_stable_diffusion_at_512_pixels_fits_a_small_gpu_by_the_forecast(
    loss: str, room: str, scripts: Callable[[str], Any], tmp_path: Path
) -> None:
    from diffusers import PNDMScheduler

    random_prior = scripts("random_prior")
    with torch.device("meta"):
        random_prior.unet().save_config(tmp_path / "unet")
        random_prior.vae().save_config(tmp_path / "vae")
    PNDMScheduler(beta_schedule="scaled_linear").save_pretrained(tmp_path / "scheduler")
    parts = {name: ["", ""] for name in ("unet", "tokenizer", "text_encoder")}
    index = {"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"],
             "scheduler": ["diffusers", "PNDMScheduler"], **parts}  # fmt: skip
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    options = [f"prior={tmp_path}", "prompt=a mug", "render.size=512", "prior_options.dtype=bfloat16"]
    config = compose_config([*options, f"guidance={loss}", f"max_vram={room}"])
    fit(config, find(tmp_path), torch.device("cpu"))
    found = cost(config, find(tmp_path), torch.device("cpu"))
    # The weights alone are two bytes for each parameter of the UNet and the VAE.
    assert found.prior.weights == 2 * (859_520_964 + 83_653_863)
    assert found.prior.weights < found.peak <= 0.9 * bytes_of(room)
    assert config.render.recompute
