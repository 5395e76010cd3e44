"""Whether the CUDA code of Warp's kernels compiles, found out without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import warp as wp

from distill.renderers import _warp_field, _warp_hashgrid, _warp_march, _warp_mesh

#: Ampere's, Hopper's and Blackwell's data centre chips.
ARCHITECTURES = (80, 90, 100)
MODULES: dict[str, Callable[[], Any]] = {
    "march": lambda: _warp_march.march,
    "cast": lambda: _warp_mesh.cast,
    **{f"encode {n}": partial(_warp_hashgrid._forward_kernel, n) for n in (1, 2, 4, 8)},
    **{f"encode back {n}": partial(_warp_hashgrid._backward_kernel, n) for n in (1, 2, 4, 8)},
}
for half in (False, True):
    shape = _warp_field.Shape(levels=12, features=2, hidden=32, activation="softplus", lanes=1, half=half)
    MODULES[f"field{' in half' * half}"] = partial(_warp_field.forward_kernel, shape)
    MODULES[f"field back{' in half' * half}"] = partial(_warp_field.backward_kernel, shape)
KERNELS = {"march": 3, "cast": 2}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_kernels_compile_for_cuda(name: str, tmp_path: Path) -> None:
    module = MODULES[name]().module
    wp.compile_aot_module(module, arch=ARCHITECTURES, module_dir=tmp_path, use_ptx=True)
    made = sorted(tmp_path.glob("*.ptx"))
    assert [path.name.split(".")[-2] for path in made] == ["sm100", "sm80", "sm90"]
    for path, architecture in zip(made, (100, 80, 90), strict=True):
        text = path.read_text()
        assert f".target sm_{architecture}" in text
        # Kernels without a backward pass of Warp's own: each is written once.
        assert text.count(".visible .entry") == KERNELS.get(name, 1)
        assert "_cuda_kernel_backward" not in text
