"""Warp started quietly, and its kernels launched over all CPU threads.

Warp runs a CPU launch on the calling thread and lets go of Python's lock meanwhile, so slices of the work
launched from several threads run side by side.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from threading import Lock
from typing import Any

import torch
import warp as wp
from torch import Tensor

_loading = Lock()
_loaded: set[tuple[Any, str]] = set()


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Point the process's error stream, which native code writes to as well, at nothing."""
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _start() -> None:
    """Initialise Warp without its banner; arrays cannot be made from tensors before."""
    if hasattr(wp.config, "log_level"):
        wp.config.log_level = max(wp.config.log_level, 40)  # errors only
    else:  # before Warp 1.19
        wp.config.quiet = True  # type: ignore[attr-defined]
    # Without CUDA the native part complains on each start, whatever the log level.
    with nullcontext() if torch.cuda.is_available() else _no_stderr():
        wp.init()


_start()


def load(kernel: wp.Kernel, device: torch.device) -> None:
    """Compile a kernel, once: threads that launch it for the first time would each do so."""
    key = (kernel, str(device))
    if key not in _loaded:
        with _loading:
            if key not in _loaded:
                kernel.module.load(wp.get_device(str(device)))
                _loaded.add(key)


@lru_cache(maxsize=1)
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="distill-warp")


# A forked child has the pool but not its threads.
os.register_at_fork(after_in_child=_pool.cache_clear)


def workers(device: torch.device) -> int:
    """Return the number of slices of a launch: torch's CPU threads, or one on a GPU."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def view(tensor: Tensor, dtype: type) -> Any:
    """A Warp array over a contiguous tensor's memory."""
    return wp.from_torch(tensor.detach(), dtype=dtype)


def in_parallel(task: Callable[[int], None], count: int, device: torch.device) -> None:
    """Call ``task(0) .. task(count - 1)``: on the CPU each on its own thread, the last on this one."""
    if device.type == "cuda":
        with wp.ScopedStream(wp.stream_from_torch(torch.cuda.current_stream(device))):
            task(0)
        return
    futures = [_pool(count - 1).submit(task, i) for i in range(count - 1)] if count > 1 else []
    task(count - 1)
    for future in futures:
        future.result()


def launch(
    kernel: wp.Kernel, items: int, inputs: list[Any], device: torch.device, inner: int | None = None
) -> None:
    """Launch a kernel, whose first argument is the first item of its slice, over all items.

    Args:
        kernel: over one dimension, or over (items, inner).
        items: size of the dimension that is cut into slices.
        inputs: arguments after the first.
        device: where the arrays live.
        inner: size of the second dimension.
    """
    if items == 0:
        return
    load(kernel, device)
    slices = min(workers(device), items)
    bounds = [items * i // slices for i in range(slices + 1)]

    def task(i: int) -> None:
        size = bounds[i + 1] - bounds[i]
        wp.launch(kernel, size if inner is None else (size, inner), [bounds[i], *inputs], device=str(device))

    in_parallel(task, slices, device)
