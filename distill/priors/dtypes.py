"""The precision that networks compute in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def default_dtype(device: torch.device, half: torch.dtype = torch.bfloat16) -> torch.dtype:
    """Half precision where the hardware computes faster in it, float32 elsewhere.

    CPUs compute faster in bfloat16 if they have AMX, or are made by AMD and have AVX-512's bfloat16 instructions: on an EPYC with Zen 4
    cores, a prediction took 0.7 times as long as in float32. On an Intel Xeon with these instructions but no AMX, it took 1.5 times as long.

    Args:
        device: where it computes.
        half: which half precision on a GPU that has both.
    """
    if device.type == "cuda":
        # Older cards of NVIDIA than Ampere imitate bfloat16; torch says of the current one alone whether it does.
        native = torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= 8
        return half if native else torch.float16
    return torch.bfloat16 if device.type == "cpu" and _has_fast_bfloat16() else torch.float32


def _has_fast_bfloat16() -> bool:
    """Whether the processor computes faster in bfloat16 than in float32."""
    # Older versions of torch do not tell the name.
    told: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    by_amd = str(told.get("cpu_name", "")).startswith("AMD") and bool(told.get("avx512_bf16"))
    return torch.cpu._is_amx_tile_supported() or by_amd


def mixed(device: torch.device | str, enabled: bool = True) -> torch.autocast:
    """Return a context for training in bfloat16 where ``default_dtype`` is that, in float32 elsewhere.

    A processor without bfloat16 imitates it, fifty times more slowly than it computes in float32.

    Args:
        device: where it computes.
        enabled: False for float32 everywhere.
    """
    device = torch.device(device)
    return torch.autocast(
        device.type, torch.bfloat16, enabled=enabled and default_dtype(device) == torch.bfloat16
    )


def dtype_of(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A precision by its name.

    Raises:
        ValueError: it is none that a network computes in.
    """
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if not isinstance(dtype, str):
        return dtype
    if dtype not in names:
        raise ValueError(f"dtype must be one of {', '.join(names)}, got {dtype!r}")
    return names[dtype]


def precision(dtype: torch.dtype) -> dict[str, Any]:
    """Return the precision argument of diffusers' ``from_pretrained``, which was renamed in version 0.40."""
    from importlib.metadata import version

    major, minor = (int(part) for part in version("diffusers").split(".")[:2])
    return {"dtype" if (major, minor) >= (0, 40) else "torch_dtype": dtype}


def keep_last(network: nn.Module, names: Sequence[str]) -> None:
    """Let a network's last layers compute in float32, whatever the others do.

    What a loss wants is the difference of two predictions, often far smaller than either and multiplied by 100: rounding
    each to half precision at the very end would be most of its error.

    Args:
        network: changed in place.
        names: of the modules from which on it computes in float32; those that it does not have are passed over.
    """
    for name in names:
        module = getattr(network, name, None)
        if isinstance(module, nn.Module) and any(p.dtype != torch.float32 for p in module.parameters()):
            module.float().register_forward_pre_hook(_in_float32, with_kwargs=True)


def _in_float32(
    module: nn.Module, values: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def lifted(value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value

    return tuple(map(lifted, values)), {name: lifted(value) for name, value in named.items()}
