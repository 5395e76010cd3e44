"""A wider UNet that starts as the narrower one it is made from: channels are copied, as in Net2Net (arXiv:1511.05641)."""

from __future__ import annotations

import torch
from torch import Tensor


def repeats(old: int, new: int, groups: int) -> Tensor:
    """Which old channel each new one copies, so that groups of a group norm stay together, shape ``[new]``."""
    inner, outer = old // groups, new // groups
    within = torch.arange(outer) % inner
    return (torch.arange(groups)[:, None] * inner + within).flatten()


def _pieces(size: int, old: int, others: tuple[int, ...]) -> list[int]:
    """A dimension taken apart: multiples of the widened width, or it and another width that is concatenated."""
    if size % old == 0:
        return [old] * (size // old)
    rest = size - old
    return [old, rest] if rest in others else [size]


class _Widening:
    """Old and new channels of one width that grows."""

    def __init__(self, old: int, new: int, others: tuple[int, ...], groups: int, generator: torch.Generator):
        self.old, self.others, self.generator = old, others, generator
        self.copies = repeats(old, new, groups)
        self.times = torch.bincount(self.copies, minlength=old)

    def index(self, size: int) -> Tensor:
        """Old indices of a dimension's new ones."""
        found, begin = [], 0
        for piece in _pieces(size, self.old, self.others):
            found.append(begin + (self.copies if piece == self.old else torch.arange(piece)))
            begin += piece
        return torch.cat(found)

    def outputs(self, value: Tensor) -> Tensor:
        return value[self.index(len(value))]

    def inputs(self, value: Tensor) -> Tensor:
        """Copies share what the old channel gave; unevenly, or they would stay copies for ever."""
        index = self.index(value.shape[1])
        wide = value[:, index]
        uneven = 0.6 + 0.8 * torch.rand(wide.shape, generator=self.generator)
        total = torch.zeros_like(value).index_add_(1, index, uneven)
        return wide * uneven / total[:, index]


def _placed(value: Tensor, shape: torch.Size, at: list[Tensor]) -> Tensor:
    """Zeros of a shape with a value at the given indices of each dimension."""
    wide = torch.zeros(shape)
    wide[torch.meshgrid(*at, indexing="ij")] = value
    return wide


def _text(name: str, value: Tensor, shape: torch.Size, heads: int) -> Tensor:
    """A weight of the layer that pools the text, whose width grows by features that it does not read yet."""
    old = value.shape[-1]
    new = shape[-1]
    if name.endswith("norm1.weight"):  # The new features are near zero, so the norm divides by less.
        wide = torch.full(shape, (old / new) ** 0.5)
        wide[:old] *= value
        return wide
    per_head = torch.arange(old) // (old // heads) * (new // heads) + torch.arange(old) % (old // heads)
    first = torch.arange(old)
    if ".pool." in name and name.endswith(("proj.weight", "proj.bias")):
        scale = ((new // heads) / (old // heads)) ** 0.5 if "q_proj" in name else 1.0
        return _placed(scale * value, shape, [per_head] if value.ndim == 1 else [per_head, first])
    if name.endswith("add_embedding.proj.weight"):
        return _placed(value, shape, [torch.arange(len(value)), per_head])
    return _placed(value, shape, [torch.arange(size) for size in value.shape[:-1]] + [first])


def grown(
    old: dict[str, Tensor], new: dict[str, Tensor], *, narrow: int, wide: int, others: tuple[int, ...],
    groups: int, heads: int, seed: int = 0,
) -> dict[str, Tensor]:  # fmt: skip
    """The weights of a UNet whose deepest level is wider, and which reads wider text, from those of a narrower one.

    Its predictions are about those of the narrower one; not exactly, since norms count copied channels twice.

    Args:
        old: weights of the narrower UNet.
        new: of the wider one as it is initialised; gives the shapes, and the weights of what reads new features of the text.
        narrow: channels of the old deepest level.
        wide: of the new one.
        others: widths that are concatenated with it.
        groups: of the group norms.
        heads: of the attention.
        seed: of what copies differ by.

    Raises:
        ValueError: a weight's shape cannot be reached so.
    """
    level = _Widening(narrow, wide, others, groups, torch.Generator().manual_seed(seed))
    result = {}
    for name, value in old.items():
        shape = new[name].shape
        if value.shape == shape:
            result[name] = value.clone()
            continue
        if name.startswith("add_embedding"):
            result[name] = _text(name, value, shape, heads)
            continue
        if shape[0] != value.shape[0]:
            value = level.outputs(value)
        if ".to_q." in name:  # Copied pairs count twice in a product, and its scale is that of wider heads.
            value = value / level.times[level.copies][:, None] * (wide / narrow) ** 0.5
        if value.ndim > 1 and value.shape[1] != shape[1]:
            if ".attn2.to_k." in name or ".attn2.to_v." in name:
                value = torch.cat([value, new[name][:, value.shape[1] :]], dim=1)
            else:
                value = level.inputs(value)
        if value.shape != shape:
            raise ValueError(
                f"cannot grow {name}: got {tuple(old[name].shape)}, and {tuple(shape)} is wanted"
            )
        result[name] = value.contiguous()
    return result
