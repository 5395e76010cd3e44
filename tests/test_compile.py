"""``prior_options.compile``: the same predictions and the same runs, with VSD's student, its layers and its hook."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_real_priors import QUICK

import distill
from distill.cameras import turntable
from distill.priors import load_prior
from distill.priors.adapter import Student

T = torch.tensor([200, 800])
X = torch.randn(2, 12, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(pixel_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior whose network has one level, and attention on the way down alone: compiling takes a while for every layer."""
    return write_small(pixel_folder, tmp_path_factory.mktemp("small") / "prior", "CrossAttnDownBlock2D")


def write_small(pixel_folder: Path, folder: Path, down: str) -> Path:
    from diffusers import UNet2DConditionModel

    shutil.copytree(pixel_folder, folder)
    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=8, in_channels=12, out_channels=12, block_out_channels=(8,), down_block_types=(down,),
        up_block_types=("UpBlock2D",), mid_block_type=None, layers_per_block=1, cross_attention_dim=16,
        attention_head_dim=2, norm_num_groups=4,
    ).save_pretrained(folder / "unet")  # fmt: skip
    return folder


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """What is compiled from here on, as whole graphs with their gradients, but run by torch without generated code.

    Generating it takes minutes for a student; that it computes the same is torch's business, and what it is given
    is ours.
    """
    made: list[torch.fx.GraphModule] = []
    interpreted: Callable[..., Any] = torch._dynamo.lookup_backend("aot_eager")

    def backend(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Any:
        made.append(graph)
        return interpreted(graph, inputs)

    torch.compiler.reset()
    whole = partial(torch.nn.Module.compile, backend=backend, fullgraph=True)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: whole(module))
    return made


@pytest.mark.slow
def test_generated_code_predicts_the_same(pixel_folder: Path, tmp_path: Path) -> None:
    """Without attention, which the other tests compile: its kernels alone take as long as all others."""
    torch.compiler.reset()
    folder = write_small(pixel_folder, tmp_path / "prior", "DownBlock2D")
    plain = load_prior(folder, dtype=torch.float32)
    compiled = load_prior(folder, dtype=torch.float32, compile=True)
    cond = plain.embed(["a mug", "a cat"])
    torch.testing.assert_close(compiled.predict_noise(X, T, cond), plain.predict_noise(X, T, cond))


@pytest.mark.slow
def test_a_run_with_a_student_ends_at_the_same_scene(
    folder: Path, graphs: list[torch.fx.GraphModule], tmp_path: Path
) -> None:
    told = {**QUICK, "guidance": "vsd", "prior": str(folder), "prior_options.dtype": "float32"}
    ends = [
        distill.generate(
            "a red mug",
            output_dir=tmp_path / str(compile),
            **told,
            **{"prior_options.compile": compile, "export.enabled": False},
        ).scene.state_dict()
        for compile in (False, True)
    ]
    assert graphs
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_students_come_and_go(folder: Path, graphs: list[torch.fx.GraphModule]) -> None:
    """A network that was compiled without a student takes one, and then another, with no trace of the first."""
    priors = [load_prior(folder, dtype=torch.float32, compile=compile) for compile in (False, True)]
    cond, cameras = priors[0].embed(["a mug", "a cat"]), turntable(2)
    alone = priors[1].predict_noise(X, T, cond)
    torch.testing.assert_close(alone, priors[0].predict_noise(X, T, cond))
    for seed in (1, 2):
        students = [
            Student(
                prior, rank=2, alpha=2, targets=("to_q", "to_out.0"), cameras=True,
                generator=torch.Generator().manual_seed(seed),
            )
            for prior in priors
        ]  # fmt: skip
        found = []
        for student in students:
            optimiser = torch.optim.SGD(student.trainable(), lr=1.0)
            for _ in range(3):
                predicted = student.predict_noise(X, T, cond, cameras)
                optimiser.zero_grad()
                predicted.square().mean().backward()
                optimiser.step()
            found.append(predicted.detach())
        torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found[1], alone, atol=1e-3)
        for mine, theirs in zip(students[1].trainable(), students[0].trainable(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(priors[1].predict_noise(X, T, cond), alone)
    assert len(graphs) > 1
