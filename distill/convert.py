"""Turn pickled files of tensors into safetensors, without running anything that is in them.

python -m distill.convert old/model            # every pickled file of a folder in the diffusers layout
python -m distill.convert old/diffusion_pytorch_model.bin
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
#: What parts are called in ImageDream's file, and in MVDream's and Stable Diffusion's.
PARTS = {"clip_model.": "cond_stage_model.", "vae_model.": "first_stage_model."}


def convert(source: Path, target: Path | None = None) -> Path:
    """Write the tensors of ``source`` to ``target``, by default beside it, named as a loader looks for it.

    The names of tensors stay, but for the two parts of ImageDream's file that are called otherwise in MVDream's.

    Raises:
        ValueError: the file cannot be read, or holds more than tensors.
    """
    target = target or target_of(source)
    try:
        found = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is no pickle fails in any way at all
        said = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{source} is no readable file of tensors: {type(error).__name__} {said}") from error
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{source} must hold named tensors and nothing else, got {type(found).__name__}")
    # Tensors that share memory would be refused.
    save_file(
        {_called(name): value.clone().contiguous() for name, value in found.items()}, target, {"format": "pt"}
    )
    return target


def _called(name: str) -> str:
    for theirs, ours in PARTS.items():
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    return name


def target_of(source: Path) -> Path:
    """Return the path where a loader looks for the safetensors: ``pytorch_model.bin`` becomes ``model.safetensors``."""
    name = "model" if source.stem == "pytorch_model" else source.stem
    return source.with_name(f"{name}.safetensors")


def pickled(folder: Path) -> list[Path]:
    """Pickled files of a folder that have no safetensors beside them."""
    found = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)
    return [path for path in found if not target_of(path).exists()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="a file, or a folder")
    parser.add_argument("target", type=Path, nargs="?", help="of one file")
    options = parser.parse_args()
    if options.target and options.source.is_dir():
        parser.error(
            f"a target is for one file, and {options.source} is a folder, whose files are written beside those that they are "
            f"converted from; leave {options.target} out"
        )
    sources = pickled(options.source) if options.source.is_dir() else [options.source]
    if not sources:
        sys.exit(
            f"error: {options.source} has no pickled file ({', '.join(SUFFIXES)}) without safetensors beside it"
        )
    try:
        for source in sources:
            print(convert(source, options.target if options.source.is_file() else None))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
