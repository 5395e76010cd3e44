"""Where a step of the main job spends its time: kernels, waits for the device, and gaps between launches."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from record import Record
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from distill import loop
from distill.contracts import Render
from distill.run.assemble import assemble
from distill.run.compose import as_overrides, compose_config

#: What profilers mark beside kernels.
MARKS = ("Optimizer.", "ProfilerStep", "Memcpy", "Memset")


def trainer(device: torch.device, overrides: dict[str, Any]) -> Callable[[int], None]:
    """The main job, some steps at a time."""
    config = compose_config(
        as_overrides({"prompt": "a red mug", "seed": 0, "device": str(device), **overrides})
    )
    job = assemble(config)

    def take(count: int) -> None:
        end = job.state.step + count

        def on_step(state: loop.State, metrics: dict[str, float], picture: Render) -> bool:
            return state.step >= end

        loop.train(job, on_step)

    return take


def wait(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def milliseconds(take: Callable[[int], None], count: int, device: torch.device) -> float:
    """Of a step, with nothing looking on."""
    started = wait(device)
    take(count)
    return 1000 * (wait(device) - started) / count


def waits(take: Callable[[int], None], count: int) -> Counter[str]:
    """Where the host waited for the device, by line; what waits inside other libraries' native code is not seen."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            take(count)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [warning for warning in caught if "synchroniz" in str(warning.message)]
    return Counter(f"{'/'.join(Path(each.filename).parts[-2:])}:{each.lineno}" for each in found)


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of a union of intervals."""
    total, end = 0.0, float("-inf")
    for begin, finish in sorted(spans):
        total += max(0.0, finish - max(begin, end))
        end = max(end, finish)
    return total


def kernels(events: Iterable[Any], kind: DeviceType) -> list[Any]:
    """What ran on a device."""
    return [event for event in events if event.device_type == kind and not event.name.startswith(MARKS[:2])]


def run(record: Record, work: Path, output: Path, device: torch.device, dry: bool) -> None:
    """Wall time, waits, kernels; in this order, for each disturbs the one before more."""
    few = 2 if dry else 20
    take = trainer(device, {"render.size": 16} if dry else {})
    take(few if dry else 100)  # the scene becomes sparse, and what is compiled or chosen at first use is
    alone = milliseconds(take, few if dry else 100, device)
    record.row("A step of the main job", {"what": "wall time with nothing looking on, ms", "a step": alone})
    if device.type == "cuda":
        found = waits(take, few)
        record.row(
            "A step of the main job",
            {"what": "waits of the host for the device", "a step": sum(found.values()) / few},
        )
        for where, count in found.most_common(25):
            record.row("Waits by line", {"line": where, "a step": count / few})
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as seen:
        looked_on = milliseconds(take, few, device)
    events = kernels(seen.events(), DeviceType.CUDA if device.type == "cuda" else DeviceType.CPU)
    busy = covered((event.time_range.start, event.time_range.end) for event in events) / 1000 / few
    for what, value in (
        ("wall time under the profiler, ms", looked_on),
        ("device busy, ms", busy),
        ("busy share of the wall time with nothing looking on", busy / alone),
        ("kernels and copies", len(events) / few),
    ):
        record.row("A step of the main job", {"what": what, "a step": value})
    longest: Counter[str] = Counter()
    for event in events:
        longest[event.name] += event.time_range.elapsed_us()
    calls = Counter(event.name for event in events)
    for name, spent in longest.most_common(25):
        record.row(
            "Kernels by time",
            {"kernel": name[:110], "calls a step": calls[name] / few, "us a step": spent / few},
        )
    averages = sorted(seen.key_averages(), key=lambda each: -each.self_cpu_time_total)
    for each in averages[:25]:
        record.row(
            "The host's time",
            {
                "operation": each.key[:110],
                "calls a step": each.count / few,
                "us a step": each.self_cpu_time_total / few,
            },
        )
    with profile(activities=activities) as short:
        take(2)
    trace = output / "trace.json.gz"
    short.export_chrome_trace(str(trace))
    if trace.stat().st_size > 15e6:
        trace.unlink()
