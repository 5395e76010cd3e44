"""Warp started quietly, and its kernels launched over all CPU threads.

Warp runs a CPU launch on the calling thread and lets go of Python's lock meanwhile, so slices of the work
launched from several threads run side by side. The threads are those of torch's operators where these are GNU
OpenMP's: between operators they spin for some 20 ms, on the cores that other threads would need.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import torch
import warp as wp
from torch import Tensor

log = logging.getLogger(__name__)

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
    quietly = nullcontext if torch.cuda.is_available() else _no_stderr
    try:
        with quietly():
            wp.init()
    except OSError:  # of the cache's folder
        wp.config.kernel_cache_dir = _elsewhere(wp.config.kernel_cache_dir)
        with quietly():
            wp.init()
    if not os.access(str(wp.config.kernel_cache_dir), os.W_OK):
        wp.config.kernel_cache_dir = _elsewhere(wp.config.kernel_cache_dir)


def _elsewhere(cache: object) -> str:
    """A folder for this process's compiled kernels, with those of a cache that cannot be written."""
    folder = tempfile.mkdtemp(prefix="distill-warp-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    log.warning(
        "Warp's compiled kernels cannot be kept in %s, and are made again in each run; set WARP_CACHE_PATH to a writable folder",
        cache,
    )
    with suppress(OSError, shutil.Error):
        shutil.copytree(str(cache), Path(folder) / wp.config.version, dirs_exist_ok=True)
    return folder


_start()


def load(kernel: wp.Kernel, device: torch.device) -> None:
    """Compile a kernel, once: threads that launch it for the first time would each do so."""
    key = (kernel, str(device))
    if key not in _loaded:
        with _loading:
            if key not in _loaded:
                kernel.module.load(wp.get_device(str(device)))
                _loaded.add(key)


#: What a thread of a parallel region calls.
_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@lru_cache(maxsize=1)
def _openmp() -> Any:
    """The function that opens a parallel region of GNU OpenMP as torch was linked with; None where it was not."""
    try:
        region = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None
    region.argtypes, region.restype = [_Body, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return region


@lru_cache(maxsize=1)
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="distill-warp")


# A forked child has the pool but not its threads; Windows does not fork.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def workers(device: torch.device) -> int:
    """Return the number of slices of a launch: torch's CPU threads, or one on a GPU."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def view(tensor: Tensor, dtype: type) -> Any:
    """A Warp array over a contiguous tensor's memory."""
    return wp.from_torch(tensor.detach(), dtype=dtype)


def in_parallel(task: Callable[[int], None], count: int, device: torch.device) -> None:
    """Call ``task(0) .. task(count - 1)``: on the CPU side by side, one of them on this thread."""
    if device.type == "cuda":
        with wp.ScopedStream(wp.stream_from_torch(torch.cuda.current_stream(device))):
            task(0)
    elif count == 1:
        task(0)
    elif _openmp() is not None:
        _in_region(task, count)
    else:
        futures = [_pool(count - 1).submit(task, i) for i in range(count - 1)]
        task(count - 1)
        for future in futures:
            future.result()


def _in_region(task: Callable[[int], None], count: int) -> None:
    numbers, errors = iter(range(count)), list[BaseException]()

    def body(_: int | None) -> None:
        # There may be fewer threads than tasks: each takes the next one.
        try:
            for number in numbers:
                task(number)
        except BaseException as error:  # nothing may leave a thread that C started
            errors.append(error)

    _openmp()(_Body(body), None, count, 0)
    if errors:
        raise errors[0]


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
