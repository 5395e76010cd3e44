"""Losses side by side: the same prompts, seeds and budget, measured against the embedded world's truth."""
