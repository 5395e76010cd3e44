"""Convert pickled files of tensors to safetensors, without executing anything in them.

python -m distill.convert old/model            # every pickled file of a folder in the diffusers layout
python -m distill.convert old/diffusion_pytorch_model.bin
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from distill.files.atomic import replacing
from distill.usage import Parser

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
#: How the name of an index of a file in several parts ends, with its variant behind "index".
INDEX = re.compile(r"\.bin\.index((?:\.\w+)?)\.json$")
#: What parts are called in ImageDream's file, and in MVDream's and Stable Diffusion's.
PARTS = {"clip_model.": "cond_stage_model.", "vae_model.": "first_stage_model."}


def convert(source: Path, target: Path | None = None) -> Path:
    """Write the tensors of ``source`` to ``target``, by default next to it, under the name that a loader expects.

    The names of tensors stay, except for the two parts of ImageDream's file that are called otherwise in MVDream's. Of an index of
    parts (``*.bin.index.json``), the names of the parts change.

    Raises:
        ValueError: the file cannot be read, or holds more than tensors; or the target is there already, or in no folder.
    """
    target = target or target_of(source)
    if target.exists():
        raise ValueError(
            f"{target} is there already, and {source} would replace it; move it, or give another target"
        )
    if not target.parent.is_dir():
        raise ValueError(f"{target} is in a folder that is not there; create {target.parent} first")
    if INDEX.search(source.name):
        return _convert_index(source, target)
    try:
        found = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is no pickle fails in any way at all
        said = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{source} is no readable file of tensors: {type(error).__name__} {said}") from error
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{source} must hold named tensors and nothing else, got {type(found).__name__}")
    # Tensors that share memory would be refused.
    tensors = {_called(name): value.clone().contiguous() for name, value in found.items()}
    with replacing(target) as part:
        try:
            save_file(tensors, part, {"format": "pt"})
        except SafetensorError as error:
            raise ValueError(f"{target} cannot be written: {error}") from error
    return target


def _convert_index(source: Path, target: Path) -> Path:
    """Write an index whose parts are called as ``target_of`` calls them."""
    try:
        index = json.loads(source.read_text("utf-8"))
        parts = {name: target_of(Path(part)).name for name, part in index["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{source} is no index of parts, with a weight_map: {error!r}") from error
    with replacing(target) as part:
        part.write_text(json.dumps({**index, "weight_map": parts}, indent=2) + "\n", "utf-8")
    return target


def _called(name: str) -> str:
    for theirs, ours in PARTS.items():
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    return name


def target_of(source: Path) -> Path:
    """Return the path where a loader expects the safetensors: ``pytorch_model.bin`` becomes ``model.safetensors``.

    What stands behind the name stays: ``pytorch_model.fp16.bin`` becomes ``model.fp16.safetensors``.
    """
    index = INDEX.search(source.name)
    name = source.name[: index.start()] if index else source.stem
    if name == "pytorch_model" or name.startswith(("pytorch_model.", "pytorch_model-")):
        name = name.removeprefix("pytorch_")
    return source.with_name(f"{name}.safetensors" + (f".index{index[1]}.json" if index else ""))


def pickled(folder: Path) -> list[Path]:
    """Return the pickled files of a folder, and indices of shards, without safetensors next to them."""
    found = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES or INDEX.search(path.name))
    return [path for path in found if not target_of(path).exists()]


def check_targets(sources: Sequence[Path]) -> None:
    """Check that no two files would be converted to one.

    Raises:
        ValueError: two would.
    """
    taken: dict[Path, Path] = {}
    for path in sources:
        if (other := taken.setdefault(target_of(path), path)) != path:
            raise ValueError(
                f"{other} and {path} would both become {target_of(path)}; convert the one that you want, by its own name"
            )


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``python -m distill.convert``."""
    parser = Parser(
        prog="python -m distill.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="a file, or a folder")
    parser.add_argument("target", type=Path, nargs="?", help="of one file")
    options = parser.parse_args(arguments)
    if options.target and options.source.is_dir():
        parser.error(
            f"a target is for one file, and {options.source} is a folder, whose files are written beside those that they are "
            f"converted from; leave {options.target} out"
        )
    try:
        sources = pickled(options.source) if options.source.is_dir() else [options.source]
        if not sources:
            raise ValueError(
                f"{options.source} has no pickled file ({', '.join(SUFFIXES)}) without safetensors beside it"
            )
        check_targets(sources)
        for source in sources:
            print(convert(source, options.target if options.source.is_file() else None))
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        sys.exit(f"{parser.prog}: error: {error}")


if __name__ == "__main__":
    main()
