r"""LoHa and LoKr layers of a LoRA file: updates that are a product of factors, dense once they are multiplied out.

.. math:: \Delta W = \frac{\alpha}{r} (A_1 B_1) \odot (A_2 B_2), \qquad \Delta W = \frac{\alpha}{r} W_1 \otimes W_2

Either factor of the Kronecker product may itself be a product A B of rank r; where neither is, there is no rank and the scale is 1.
A convolution's last factor may be in Tucker's form, with a core T.

Source: Hyeon-Woo et al. 2022 (FedPara), arXiv:2108.06098, Eq. 2; Yeh et al. 2024 (LyCORIS), arXiv:2309.14859, Sec. 3.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

#: What ends the names of a layer's factors.
FACTORS = re.compile(r"\.(hada_(w[12]_[ab]|t[12])|lokr_(w[12](_[ab])?|t2))$")
#: Kinds of adapters that are not read, by what their tensors' names have.
UNREAD = {
    "boft_": "BOFT",
    "oft_": "OFT",
    r"\.[ab][12]\.weight": "GLoRA",
    "on_input": "(IA)^3",
    r"\.diff(_b)?$": "full difference",
    r"\.[wb]_norm$": "norms",
    "lora_mid": "LoCon with a core (lora_mid)",
    "vera_lambda": "VeRA",
    r"(hada|lokr)\w*\.scalar|\.scalar$": "LyCORIS with a scalar of its own",
}
#: Dimensions of the tensors that stand for a layer while diffusers translates its name; no others have so many.
MARK = 7


def check_kind(names: Collection[str]) -> None:
    """Refuse the adapters that are not read.

    Raises:
        ValueError: there are such, in words that name their kind.
    """
    if any("dora_scale" in name or "lora_magnitude_vector" in name for name in names):
        raise ValueError("it is a DoRA, whose scales diffusers does not read")
    for mark, kind in UNREAD.items():
        if any(re.search(mark, name) for name in names):
            raise ValueError(f"it has layers of the kind {kind}, and LoRA, LoHa and LoKr are read")


def taken(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Part a file into LoRA's tensors, with a mark for every other layer, and those layers' factors.

    Args:
        tensors: the file's.

    Returns:
        Tensors that diffusers takes for LoRA's; and the factors of each layer by ``hada_w1_a`` and so on, with ``alpha`` where the
        file has it, in the order of the marks.
    """
    layers = sorted({FACTORS.split(name)[0] for name in tensors if FACTORS.search(name)})
    marked = {name: x for name, x in tensors.items() if name.rpartition(".")[0] not in layers}
    factors = []
    for number, layer in enumerate(layers):
        own = {
            name.removeprefix(f"{layer}."): x for name, x in tensors.items() if name.startswith(f"{layer}.")
        }
        factors.append(own)
        mark = torch.full((1,) * MARK, float(number))
        marked |= {f"{layer}.lora_down.weight": mark, f"{layer}.lora_up.weight": mark.clone()}
        marked[f"{layer}.alpha"] = torch.tensor(1.0)
    return marked, factors


def placed(
    state: Mapping[str, Any], factors: list[dict[str, Tensor]]
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Find the marks again: the state without them, and each layer's factors by its name in diffusers."""
    rest: dict[str, Any] = {}
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        if value.ndim == MARK:
            found[layer_of(name)] = factors[int(value.item())]
        else:
            rest[name] = value
    return rest, found


def layer_of(name: str) -> str:
    """The layer that a tensor belongs to, by its name in diffusers' state of a LoRA; attention has names of its own there."""
    layer = re.split(r"[._]lora(?![a-z])", name)[0].replace(".processor", "")
    if layer.startswith("text_encoder"):
        return re.sub(r"\.self_attn\.to_(q|k|v|out)$", r".self_attn.\1_proj", layer)
    return re.sub(r"\.to_out$", ".to_out.0", layer)


def dense(own: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
    """Multiply a layer's factors out, float32.

    Args:
        own: the factors, see ``taken``.
        shape: of the layer's weight.

    Raises:
        ValueError: they do not make this shape, or one is missing.
    """
    given = {name: value.float() for name, value in own.items()}
    alpha = given.pop("alpha", None)
    try:
        made, rank = _hadamard(given) if "hada_w1_a" in given else _kronecker(given)
        scale = 1.0 if alpha is None or rank is None else alpha.item() / rank
        return (made * scale).reshape(shape)
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            f"the factors {', '.join(sorted(given))} do not make a weight of shape {list(shape)}"
        ) from error


def _hadamard(given: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    pair = []
    for number in "12":
        a, b = given[f"hada_w{number}_a"], given[f"hada_w{number}_b"]
        core = given.get(f"hada_t{number}")
        pair.append(a @ b if core is None else torch.einsum("ijkl,ip,jr->prkl", core, a, b))
    return pair[0] * pair[1], given["hada_w1_b"].shape[0]


def _kronecker(given: Mapping[str, Tensor]) -> tuple[Tensor, int | None]:
    pair, rank = [], None
    for number in "21":
        if (whole := given.get(f"lokr_w{number}")) is None:
            a, b = given[f"lokr_w{number}_a"], given[f"lokr_w{number}_b"]
            core = given.get("lokr_t2") if number == "2" else None
            whole = a @ b if core is None else torch.einsum("ijkl,ip,jr->prkl", core, a, b)
            rank = b.shape[0]
        pair.append(whole)
    second, first = (each.contiguous() for each in pair)
    return torch.kron(first[..., None, None] if second.ndim == 4 else first, second), rank
