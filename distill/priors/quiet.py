"""Silence where a library's warnings would only mislead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

#: Level at which these libraries log nothing but what ends them.
SILENT = 50


@contextmanager
def quiet() -> Iterator[None]:
    """Silence diffusers and transformers; callers report what matters in one line. Within another one it costs nothing."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    # To set a level clears what every logger of the process remembers, a millisecond each time.
    before = [
        (each, level) for each in (of_diffusers, of_transformers) if (level := each.get_verbosity()) != SILENT
    ]
    of_transformers.disable_progress_bar()
    for each, _ in before:
        each.set_verbosity(SILENT)
    try:
        yield
    finally:
        for each, level in before:
            each.set_verbosity(level)
