"""Frozen diffusion models that act as priors."""

from distill.priors.load import load_prior

__all__ = ["load_prior"]
