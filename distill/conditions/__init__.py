"""Conditioning of a prior: prompts, Perp-Neg, ControlNet input, an input picture."""
