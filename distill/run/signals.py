"""Signals that ask a process to stop: held back until a step's end while it trains, and an exception at any other time."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

#: Signals that ask a run to stop; Windows has no SIGHUP.
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
ASKS = (signal.SIGINT, signal.SIGTERM)
#: Signals by which a launcher learns that its job is about to be ended, and for which it then has a handler; Windows has none.
ANNOUNCING = [getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
#: Exit code of a run that a signal has stopped.
INTERRUPTED = 130


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Turn SIGINT, SIGTERM and SIGHUP into a flag for as long as the context lasts; a second SIGINT is not held back."""
    stop = threading.Event()

    def request(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    with _handled(request):
        yield stop


@contextlib.contextmanager
def as_interrupts() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP raise ``KeyboardInterrupt`` for as long as the context lasts."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handled(interrupt):
        yield


def heeding_launcher(job: Callable[[], int]) -> int:
    """Run a job of a launcher, which stops as at SIGTERM when the launcher is told that its time is over; returns its exit code.

    The launcher hears of it after the job's checkpoint: submitit, which SLURM tells with SIGUSR2, ends a job wherever it is, and
    may put it back into the queue.

    Raises:
        BaseException: what the launcher ends the job with.
    """
    announced: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        announced.append(number)
        signal.raise_signal(signal.SIGTERM)

    with _handled(stop, [number for number in ANNOUNCING if callable(signal.getsignal(number))]):
        code = job()
    if announced and code == INTERRUPTED:  # what ended in time has nothing left to be put back for
        signal.raise_signal(announced[0])
    return code


@contextlib.contextmanager
def _handled(
    handler: Callable[[int, FrameType | None], None], numbers: Sequence[int] | None = None
) -> Iterator[None]:
    """Handle signals, by default those of ``STOPPING``, so for as long as the context lasts; in the main thread, which alone may say how."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # What was started with nohup ignores SIGHUP, and continues doing so.
    heeded = [
        number
        for number in (STOPPING if numbers is None else numbers)
        if number in ASKS or signal.getsignal(number) != signal.SIG_IGN
    ]
    previous = {number: signal.signal(number, handler) for number in heeded}
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)
