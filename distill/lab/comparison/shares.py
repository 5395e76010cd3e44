"""Work shared between several commands."""

from __future__ import annotations

import argparse
import re


def share(text: str) -> tuple[int, int]:
    """``"2/3"``, the second of three shares, as ``(2, 3)``; for ``type=`` of an argument.

    Raises:
        argparse.ArgumentTypeError: it is no such share.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"must be k/n with 1 <= k <= n, got {text}")
    return int(found[1]), int(found[2])
