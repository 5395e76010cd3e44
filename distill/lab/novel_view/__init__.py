"""Rendering data for novel-view models, training and evaluating them."""
