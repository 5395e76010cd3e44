"""LoHa and LoKr files: each layer's weight is W + w (alpha / r) times the product, written out by hand and as peft has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from single_files import of_unet, wide_xl
from tiny_pipelines import make
from torch import Tensor

from distill.priors import load_prior
from distill.priors.lycoris import dense

WEIGHT, RANK, ALPHA = 0.7, 3, 2.0
Factors = dict[str, Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return 0.5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def loha(out: int, into: int, *, alpha: float | None = ALPHA, core: int = 0) -> Factors:
    """Factors of a layer; with ``core``, Tucker's form of a convolution with that many taps."""
    pairs: Factors = {}
    for number in (1, 2):
        a = draw(RANK, out, seed=number) if core else draw(out, RANK, seed=number)
        pairs |= {f"hada_w{number}_a": a, f"hada_w{number}_b": draw(RANK, into, seed=10 + number)}
        if core:
            pairs[f"hada_t{number}"] = draw(RANK, RANK, core, core, seed=20 + number)
    return pairs if alpha is None else {**pairs, "alpha": torch.tensor(alpha)}


def by_elements(given: Factors) -> Tensor:
    """LoHa: the sums over ranks, place by place."""
    halves = []
    for number in "12":
        a, b = given[f"hada_w{number}_a"].numpy(), given[f"hada_w{number}_b"].numpy()
        if (core := given.get(f"hada_t{number}")) is None:
            halves.append(sum(np.multiply.outer(a[:, r], b[r]) for r in range(RANK)))
            continue
        t = core.numpy()
        made = np.zeros((a.shape[1], b.shape[1], *t.shape[2:]))
        for i in range(RANK):
            for j in range(RANK):
                made += np.multiply.outer(np.multiply.outer(a[i], b[j]), t[i, j])
        halves.append(made)
    scale = given["alpha"].item() / RANK if "alpha" in given else 1.0
    return torch.from_numpy(halves[0] * halves[1] * scale).float()


@pytest.mark.parametrize("alpha", [ALPHA, None])
def test_loha_by_elements(alpha: float | None) -> None:
    given = loha(8, 6, alpha=alpha)
    torch.testing.assert_close(dense(given, torch.Size([8, 6])), by_elements(given))
    given = loha(8, 6 * 9, alpha=alpha)  # a convolution of 3 by 3, flattened
    torch.testing.assert_close(dense(given, torch.Size([8, 6, 3, 3])), by_elements(given).reshape(8, 6, 3, 3))
    given = loha(8, 6, alpha=alpha, core=3)
    torch.testing.assert_close(dense(given, torch.Size([8, 6, 3, 3])), by_elements(given))


def kronecker(first: Tensor, second: Tensor) -> Tensor:
    """Blocks of the second factor, each times a number of the first; taps stay where they are."""
    rows = [torch.cat([number * second for number in row], 1) for row in first]
    return torch.cat(rows, 0)


#: Factors of LoKr for a weight of 8 by 6, and which rank the scale has.
LOKR: dict[str, tuple[Factors, int | None]] = {
    "whole": ({"lokr_w1": draw(2, 3), "lokr_w2": draw(4, 2, seed=1)}, None),
    "second": ({"lokr_w1": draw(2, 3), "lokr_w2_a": draw(4, 5, seed=1), "lokr_w2_b": draw(5, 2, seed=2)}, 5),
    "both": (
        {"lokr_w1_a": draw(2, 5), "lokr_w1_b": draw(5, 3, seed=1), "lokr_w2_a": draw(4, 5, seed=2),
         "lokr_w2_b": draw(5, 2, seed=3)}, 5,
    ),
    "first": ({"lokr_w1_a": draw(2, 5), "lokr_w1_b": draw(5, 3, seed=1), "lokr_w2": draw(4, 2, seed=2)}, 5),
}  # fmt: skip


def half(given: Factors, number: int) -> Tensor:
    name = f"lokr_w{number}"
    return given[name] if name in given else given[f"{name}_a"] @ given[f"{name}_b"]


@pytest.mark.parametrize("kind", list(LOKR))
def test_lokr_by_blocks(kind: str) -> None:
    """Without a product there is no rank, and the scale is 1 whatever alpha says."""
    given, rank = LOKR[kind]
    expected = kronecker(half(given, 1), half(given, 2))
    torch.testing.assert_close(dense(given, torch.Size([8, 6])), expected)
    scaled = dense({**given, "alpha": torch.tensor(ALPHA)}, torch.Size([8, 6]))
    torch.testing.assert_close(scaled, expected * (ALPHA / rank if rank else 1.0))


def test_lokr_of_convolutions_by_blocks() -> None:
    first, second = draw(2, 3), draw(4, 2, 3, 3, seed=1)
    expected = kronecker(first, second)
    torch.testing.assert_close(dense({"lokr_w1": first, "lokr_w2": second}, expected.shape), expected)
    a, b = draw(4, 5, seed=1), draw(5, 2 * 9, seed=2)
    flat = {"lokr_w1": first, "lokr_w2_a": a, "lokr_w2_b": b}
    torch.testing.assert_close(dense(flat, expected.shape), kronecker(first, (a @ b).reshape(4, 2, 3, 3)))
    core, a, b = draw(5, 5, 3, 3), draw(5, 4, seed=1), draw(5, 2, seed=2)
    whole = torch.zeros(4, 2, 3, 3)
    for i in range(5):
        for j in range(5):
            whole += a[i][:, None, None, None] * b[j][None, :, None, None] * core[i, j]
    tucker = {"lokr_w1": first, "lokr_t2": core, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": torch.tensor(ALPHA)}
    expected = kronecker(first, whole) * ALPHA / 5
    torch.testing.assert_close(dense(tucker, expected.shape), expected, rtol=1e-4, atol=1e-5)


def test_both_as_pefts_own_functions() -> None:
    from peft.tuners.loha.layer import make_weight
    from peft.tuners.lokr.layer import make_kron

    h = loha(8, 6)
    scale = torch.tensor(ALPHA / RANK)
    one, two = (h["hada_w1_a"], h["hada_w1_b"]), (h["hada_w2_a"], h["hada_w2_b"])
    expected = make_weight(*one, *two, scale)
    torch.testing.assert_close(dense(h, torch.Size([8, 6])), expected)
    first, second = draw(2, 3), draw(4, 2, 3, 3, seed=1)
    expected = make_kron(first, second, 1.0)
    torch.testing.assert_close(dense({"lokr_w1": first, "lokr_w2": second}, expected.shape), expected)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lycoris")
    make("stable_diffusion").save_pretrained(folder)
    return folder


def load(folder: Path, *loras: str) -> Any:
    return load_prior(folder, dtype=torch.float32, image_size=64, loras=loras)


def named(layer: str, factors: Factors, prefix: str = "lora_unet") -> Factors:
    return {f"{prefix}_{layer.replace('.', '_')}.{name}": x.clone() for name, x in factors.items()}


def test_a_file_changes_exactly_its_layers_each_by_its_own_kind(folder: Path, tmp_path: Path) -> None:
    """LoHa on attention and a convolution, LoKr on the feed-forward layer, LoRA beside them."""
    plain = load(folder)
    block = "mid_block.attentions.0.transformer_blocks.0"
    weights = dict(plain.network.named_parameters())
    out, into = weights[f"{block}.ff.net.2.weight"].shape
    lokr = {
        "lokr_w1": draw(2, 4),
        "lokr_w2_a": draw(out // 2, RANK, seed=1),
        "lokr_w2_b": draw(RANK, into // 4, seed=2),
    }
    lokr["alpha"] = torch.tensor(ALPHA)
    pair = draw(2, 32, seed=5), draw(32, 2, seed=6)
    conv = loha(32, 32, core=3)
    layers: dict[str, tuple[Factors, Tensor]] = {
        f"{block}.attn1.to_q": (loha(32, 32), by_elements(loha(32, 32))),
        f"{block}.attn2.to_out.0": (loha(32, 32, alpha=None), by_elements(loha(32, 32, alpha=None))),
        "mid_block.resnets.0.conv1": (conv, by_elements(conv)),
        f"{block}.ff.net.2": (lokr, kronecker(half(lokr, 1), half(lokr, 2)) * ALPHA / RANK),
        f"{block}.attn1.to_k": (
            {"lora_down.weight": pair[0], "lora_up.weight": pair[1], "alpha": torch.tensor(4.0)},
            2 * pair[1] @ pair[0],
        ),
    }
    tensors: Factors = {}
    for layer, (factors, _) in layers.items():
        tensors |= named(layer, factors)
    save_file(tensors, tmp_path / "style.safetensors")
    prior = load(folder, f"{tmp_path}/style.safetensors:{WEIGHT}")
    for name, value in prior.network.named_parameters():
        layer = name.removesuffix(".weight")
        change = WEIGHT * layers[layer][1] if layer in layers else torch.zeros(())
        torch.testing.assert_close(value, weights[name] + change, rtol=1e-4, atol=1e-5, msg=name)
    assert prior.describe()["loras"][0]["weight"] == WEIGHT


def test_text_encoders_have_theirs_and_the_cache_tells(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    pipeline = make("stable_diffusion")
    tensors: Factors = {}
    for number, kind in enumerate(("self_attn.q_proj", "self_attn.out_proj")):
        path = f"text_model.encoder.layers.{number}.{kind}"
        tensors |= named(path, loha(16, 16), "lora_te")
        inner = path if hasattr(pipeline.text_encoder, "text_model") else path.removeprefix("text_model.")
        with torch.no_grad():
            pipeline.text_encoder.get_submodule(inner).weight += WEIGHT * by_elements(loha(16, 16))
    save_file(tensors, tmp_path / "style.safetensors")
    found = load(folder, f"{tmp_path}/style.safetensors:{WEIGHT}").embed(["a red mug"])
    with torch.no_grad():
        states, _ = pipeline.encode_prompt(["a red mug"], "cpu", 1, do_classifier_free_guidance=False)
    torch.testing.assert_close(found["encoder_hidden_states"], states, rtol=1e-4, atol=1e-5)
    plain = load(folder).embed(["a red mug"])["encoder_hidden_states"]
    assert not torch.allclose(plain, states, atol=1e-3)


def test_names_of_xl_as_its_trainers_write_them(tmp_path: Path) -> None:
    """Blocks numbered through, as in Stability's code; diffusers knows which is which."""
    pipeline = wide_xl()
    pipeline.save_pretrained(tmp_path / "prior")
    theirs = list(of_unet(pipeline.unet))  # in the order of the UNet's own names
    names = dict(zip(pipeline.unet.state_dict(), theirs, strict=True))
    wanted = [name for name in names if name.endswith(("attn1.to_q.weight", "ff.net.2.weight"))]
    weights = pipeline.unet.state_dict()
    tensors: Factors = {}
    changed: Factors = {}
    for name in wanted:
        factors = loha(*weights[name].shape)
        tensors |= named(names[name].removeprefix("model.diffusion_model.").removesuffix(".weight"), factors)
        changed[name] = weights[name] + by_elements(factors)
    save_file(tensors, tmp_path / "style.safetensors")
    prior = load(tmp_path / "prior", f"{tmp_path}/style.safetensors")
    for name, value in prior.network.named_parameters():
        torch.testing.assert_close(value, changed.get(name, weights[name]), rtol=1e-4, atol=1e-5, msg=name)
    assert len(wanted) == 8


LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("oft_blocks", "it has layers of the kind OFT, and LoRA, LoHa and LoKr are read"),
        ("boft_R", "of the kind BOFT"),
        ("a1.weight", "of the kind GLoRA"),
        ("on_input", r"of the kind \(IA\)\^3"),
        ("diff", "of the kind full difference"),
        ("w_norm", "of the kind norms"),
        ("lora_mid.weight", r"of the kind LoCon with a core \(lora_mid\)"),
        ("scalar", "of the kind LyCORIS with a scalar of its own"),
        ("dora_scale", "it is a DoRA, whose scales diffusers does not read"),
        ("lora_magnitude_vector", "it is a DoRA, whose scales diffusers does not read"),
    ],
)
def test_other_kinds_are_refused_by_name(name: str, said: str, folder: Path, tmp_path: Path) -> None:
    """Beside layers that would be read, too: a part of a file is never left out."""
    save_file({f"{LAYER}.{name}": torch.zeros(1), **named("x", loha(4, 4))}, tmp_path / "style.safetensors")
    with pytest.raises(ValueError, match=said) as caught:
        load(folder, f"{tmp_path}/style.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (
            {f"{LAYER}.{name}": x for name, x in loha(7, 32).items()},
            "do not make a weight of shape \\[32, 32\\]",
        ),
        ({f"{LAYER}.hada_w1_a": torch.zeros(32, 2)}, "do not make a weight of shape"),
        (named("blocks.0.attn.to_q", loha(32, 32)), "does not fit this prior, a StableDiffusionPipeline: "),
    ],
)
def test_what_does_not_fit_is_one_line(tensors: Factors, said: str, folder: Path, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "style.safetensors")
    with pytest.raises(ValueError, match=said) as caught:
        load(folder, f"{tmp_path}/style.safetensors")
    assert "\n" not in str(caught.value)


def test_transformers_take_none(tmp_path: Path) -> None:
    make("stable_diffusion_3").save_pretrained(tmp_path / "prior")
    save_file(named("x", loha(4, 4)), tmp_path / "style.safetensors")
    with pytest.raises(ValueError, match="it is a LoHa or LoKr, which are read for UNets only"):
        load(tmp_path / "prior", f"{tmp_path}/style.safetensors")
