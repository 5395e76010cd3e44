"""Half precision: how far the difference of two predictions is off, and what computes in float32 nevertheless."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import make
from torch import nn

import distill
from distill.contracts import Condition, Step
from distill.guidance.vsd import VSD
from distill.priors import load
from distill.priors.dtypes import default_dtype, keep_last, mixed
from distill.priors.families import FAMILIES

HALVES = (torch.bfloat16, torch.float16)


def noised(prior: Any, t: torch.Tensor) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    x = prior.encode(0.5 + 0.3 * torch.rand(len(t), 3, 64, 64, generator=g))
    return prior.alpha(t) * x + prior.sigma(t) * torch.randn(x.shape, generator=g)


def difference(prior: Any, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """What CSD and large guidance scales consist of."""
    text, empty = prior.embed(["a red mug"] * len(t)), prior.embed([""] * len(t))
    return prior.predict_noise(x_t, t, text) - prior.predict_noise(x_t, t, empty)


@pytest.mark.slow
def test_a_float32_ending_halves_the_error_and_float16_is_far_better_than_bfloat16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = distill.load_prior("embedded", dtype=torch.float32)
    t = torch.full((2,), 300)
    x_t = noised(exact, t)
    wanted = difference(exact, x_t, t)
    # The prompt changes the prediction by a few percent at this timestep.
    ratio = wanted.std() / exact.predict_noise(x_t, t, exact.embed(["a red mug"] * 2)).std()
    assert 0.02 < float(ratio) < 0.1

    def off(dtype: torch.dtype) -> float:
        found = difference(distill.load_prior("embedded", dtype=dtype), x_t, t)
        return float((found - wanted).norm() / wanted.norm())

    kept = [off(dtype) for dtype in HALVES]
    monkeypatch.setattr(load, "keep_last", lambda *_: None)
    rounded = [off(dtype) for dtype in HALVES]
    assert all(a < 0.7 * b for a, b in zip(kept, rounded, strict=True)), (kept, rounded)
    assert kept[1] < 0.2 * kept[0] < 0.05, kept


@pytest.mark.parametrize(
    "kind", ["stable_diffusion", "deepfloyd", "pixart", "stable_diffusion_3", "flux", "sana"]
)
def test_only_the_last_layers_compute_in_float32(kind: str, tmp_path: Path) -> None:
    make(kind).save_pretrained(tmp_path)
    prior = distill.load_prior(tmp_path, dtype=torch.bfloat16)
    last = {name for name in prior.family.last if getattr(prior.network, name, None) is not None}
    assert last
    for name, parameter in prior.network.named_parameters():
        wanted = torch.float32 if name.split(".")[0] in last else torch.bfloat16
        assert parameter.dtype == wanted, name
    seen: list[torch.dtype] = []
    (_, ending) = prior.family.last
    getattr(prior.network, ending).register_forward_hook(
        lambda module, given, found: seen.append(found.dtype)
    )
    x_t = torch.randn(2, *prior.shape, generator=torch.Generator().manual_seed(0))
    found = prior.predict_noise(x_t, torch.tensor([100, 900]), prior.embed(["a red mug", ""]))
    assert seen == [torch.float32] and found.dtype == torch.float32 and bool(found.isfinite().all())


def test_what_is_float32_already_gets_no_hook() -> None:
    network = nn.Module()
    network.ending = nn.Linear(2, 2)
    keep_last(network, ("ending", "absent"))
    assert not network.ending._forward_pre_hooks
    keep_last(network.to(torch.bfloat16), ("ending",))
    assert network.ending.weight.dtype == torch.float32
    assert network.ending(torch.ones(1, 2, dtype=torch.bfloat16)).dtype == torch.float32


def test_each_family_has_its_precision_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    cards = {"cuda": (8, 0), "cuda:0": (9, 0), "cuda:1": (7, 5)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: cards[str(device)])
    chosen = {kind: default_dtype(cuda, family.half) for kind, family in FAMILIES.items()}
    assert chosen["StableDiffusionPipeline"] == chosen["StableDiffusionXLPipeline"] == torch.float16
    assert chosen["StableDiffusion3Pipeline"] == chosen["FluxPipeline"] == torch.bfloat16
    # A Turing card imitates bfloat16, whichever card is the current one.
    second = torch.device("cuda:1")
    assert default_dtype(torch.device("cuda:0")) == torch.bfloat16
    assert {default_dtype(second, family.half) for family in FAMILIES.values()} == {torch.float16}


@pytest.mark.parametrize("dtype", HALVES)
def test_vsds_copy_learns_in_half_precision(dtype: torch.dtype) -> None:
    def gradients(kind: torch.dtype) -> torch.Tensor:
        prior = distill.load_prior("embedded", dtype=kind)
        vsd = VSD(prior, torch.Generator().manual_seed(0), {})
        x = prior.encode(torch.full((1, 3, 64, 64), 0.4))
        cond = Condition({"text": prior.embed(["a red mug"]), "uncond": prior.embed([""])}, step=Step())
        vsd.learn(prior, x, cond, torch.Generator().manual_seed(1))
        return torch.cat([p.grad.flatten() for p in vsd.student.trainable() if p.grad is not None])

    exact, found = gradients(torch.float32), gradients(dtype)
    assert exact.norm() > 0
    # 0.0025 and 0.022 here; without the loss enlarged, float16 would be off by 0.15.
    assert float((found - exact).norm() / exact.norm()) < {torch.float16: 0.01, torch.bfloat16: 0.05}[dtype]


@pytest.mark.parametrize(
    ("amx", "told", "native"),
    [
        (True, {"cpu_name": "Intel(R) Xeon(R) Processor", "avx512_bf16": True}, True),
        # Intel's AVX-512 without AMX computes more slowly in bfloat16 than in float32, AMD's faster.
        (False, {"cpu_name": "Intel(R) Xeon(R) Processor", "avx512_bf16": True}, False),
        (False, {"cpu_name": "AMD EPYC", "avx512_bf16": True}, True),
        (False, {"cpu_name": "AMD Ryzen 9 5950X", "avx512_bf16": False}, False),
        (False, {"architecture": "aarch64"}, False),
        (True, None, True),
        (False, None, False),
    ],
)
def test_training_is_in_bfloat16_only_where_the_processor_computes_faster_in_it(
    monkeypatch: pytest.MonkeyPatch, amx: bool, told: dict[str, object] | None, native: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    if told is None:  # older versions of torch do not tell
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)

    with mixed("cpu"):
        chosen = layer(x).dtype
    with mixed("cpu", enabled=False):
        never = layer(x).dtype

    assert chosen == (torch.bfloat16 if native else torch.float32)
    assert never == torch.float32


def test_no_training_asks_for_bfloat16_without_asking_the_hardware() -> None:
    root = Path(__file__).parents[1]
    files = [*root.glob("distill/**/*.py"), *root.glob("examples/**/*.py")]

    asked = re.compile(r"autocast\([^()]*bfloat16")

    assert [str(f) for f in files if asked.search(f.read_text("utf-8")) and f.name != "dtypes.py"] == []
    assert asked.search("with torch.autocast(device.type, torch.bfloat16, enabled=True):")
