"""The prior that a comparison is given: its name, and a digest that tells it from another of the same name."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from types import CellType, ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from distill.contracts import Prior
from distill.embedded.prompt import prior_for
from distill.parts.made import no_prior
from distill.priors.exact import ExactPrior
from distill.priors.wrapped import Wrapped
from distill.run.config.code import together, used_code


class PriorOf(Protocol):
    """A function that makes the prior of a prompt; cells record its name."""

    __name__: str

    def __call__(self, prompt: str, /) -> Prior: ...


def prior_name(prior: Prior | PriorOf | None, prompts: Iterable[str]) -> str:
    """Return what a comparison's cells record of their prior: without one, the bundled one that knows the prompts.

    Raises:
        ValueError: it is neither a prior nor a function with a name.
    """
    if prior is None:
        return prior_for(prompts)
    if isinstance(prior, Prior):
        return prior.name
    if not callable(prior):
        raise ValueError(
            f"prior must be a loaded prior (distill.contracts.Prior) or a function that makes one for a prompt, got {no_prior(prior)}"
        )
    if not (name := getattr(prior, "__name__", "")):
        raise ValueError(
            f"a function that makes a comparison's priors needs a name, for its cells; got {str(prior)[:80]!r}, define it with def"
        )
    return str(name)


def prior_code(prior: Prior | PriorOf | None) -> dict[str, str]:
    """The SHA-256 of what a given prior is, under ``prior``; nothing without one.

    Of an exact prior, or another dataclass, that is all it holds; of a module its weights; of any other what its ``describe`` says, and its
    code. Of a function that makes priors it is the code, with what it was bound to.
    """
    if prior is None:
        return {}
    digest = hashlib.sha256()
    loaded = type(prior).__module__.partition(".")[0] == "distill" and not isinstance(
        prior, (ExactPrior, Wrapped)
    )
    # What is loaded from files has their checksums in its description.
    _add(prior.describe() if loaded and isinstance(prior, Prior) else prior, digest)
    return {"prior": digest.hexdigest()}


def _add(value: Any, digest: Any, above: tuple[int, ...] = ()) -> None:
    """Add to a digest what a value holds, and of what is no plain value its code; ``above`` are the ids of what holds it."""
    digest.update(f"{type(value).__qualname__}:".encode())
    if id(value) in above:  # what holds itself
        return
    held = [*above, id(value)]
    if isinstance(value, np.ndarray) and value.dtype != object:
        value = torch.from_numpy(np.array(value)) if value.dtype.kind in "fiub" else value.tolist()
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        digest.update(f"{plain.dtype}{list(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    elif value is None or isinstance(value, (bool, int, float, str, bytes, torch.device, torch.dtype)):
        digest.update(repr(value).encode())
    elif isinstance(value, ModuleType):
        digest.update(value.__name__.encode())
    else:
        for item in _held(value, digest):
            _add(item, digest, tuple(held))


def _held(value: Any, digest: Any) -> Iterator[Any]:
    """Yield what a value consists of; code is added to the digest at once."""
    if isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            yield from (repr(key), value[key])
    elif isinstance(value, (list, tuple)):
        yield from value
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif inspect.ismethod(value):
        yield from (value.__func__, value.__self__)
    elif callable(value) and hasattr(value, "__code__"):
        digest.update(together(used_code([value])).encode())
        yield from (_inside(cell) for cell in value.__closure__ or ())
        yield from (value.__defaults__, value.__kwdefaults__)
    elif isinstance(value, type):
        digest.update(together(used_code([value])).encode())
    else:
        digest.update(together(used_code([type(value)])).encode())
        yield from _state(value)


def _inside(cell: CellType) -> Any:
    """What a cell of a closure holds, None where that is not set yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _state(value: Any) -> Iterator[Any]:
    """What an object is made of."""
    if isinstance(value, nn.Module):
        yield value.state_dict()
    elif dataclasses.is_dataclass(value):
        yield {item.name: getattr(value, item.name) for item in dataclasses.fields(value) if item.compare}
    elif isinstance(value, Prior):
        yield json.dumps(value.describe(), default=repr, sort_keys=True)
    else:
        yield getattr(value, "__dict__", None)
