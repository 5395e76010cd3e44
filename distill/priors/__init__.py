"""Frozen diffusion models that act as priors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.priors.load import load_prior

__all__ = ["load_prior"]


def __getattr__(name: str) -> Any:
    # Late, so that the table of known models is read without torch.
    if name == "load_prior":
        from distill.priors.load import load_prior

        return load_prior
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
