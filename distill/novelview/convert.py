"""Turn a pickled file of tensors into safetensors, without running anything that is in it.

python -m distill.novelview.convert cc_projection/diffusion_pytorch_model.bin
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor


def convert(source: Path, target: Path | None = None) -> Path:
    """Write the tensors of ``source`` to ``target``, by default beside it with another suffix.

    Raises:
        ValueError: the file cannot be read, or holds more than tensors.
    """
    target = target or source.with_suffix(".safetensors")
    try:
        found = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is no pickle fails in any way at all
        said = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{source} is no readable file of tensors: {type(error).__name__} {said}") from error
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{source} must hold named tensors and nothing else, got {type(found).__name__}")
    # Tensors that share memory would be refused.
    save_file({name: value.clone().contiguous() for name, value in found.items()}, target)
    return target


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit(f"usage: {Path(sys.argv[0]).name} SOURCE [TARGET]")
    try:
        print(convert(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else None))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
