"""Silence where a library's warnings would only mislead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Silence diffusers and transformers; callers report what matters in one line."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    before = [(each, each.get_verbosity()) for each in (of_diffusers, of_transformers)]
    of_transformers.disable_progress_bar()
    for each, _ in before:
        each.set_verbosity(50)
    try:
        yield
    finally:
        for each, level in before:
            each.set_verbosity(level)
