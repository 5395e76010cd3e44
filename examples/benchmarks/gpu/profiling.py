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
from distill.job import State
from distill.run.assembly.assemble import assemble
from distill.run.config.compose import compose_config
from distill.run.config.overrides import as_overrides

#: What profilers mark beside kernels.
MARKS = ("Optimizer.", "ProfilerStep", "Memcpy", "Memset")
#: Calls of CUDA that launch something.
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")


def trainer(device: torch.device, overrides: dict[str, Any]) -> Callable[[int], None]:
    """The main job, some steps at a time."""
    config = compose_config(
        as_overrides({"prompt": "a red mug", "seed": 0, "device": str(device), **overrides})
    )
    job = assemble(config)

    def take(count: int) -> None:
        end = job.state.step + count

        def on_step(state: State, metrics: dict[str, float], picture: Render) -> bool:
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


def launches(averages: Iterable[Any]) -> int:
    """Calls that put work on the device's queue."""
    return sum(each.count for each in averages if each.key.startswith(LAUNCHES))


def run(record: Record, work: Path, output: Path, device: torch.device, dry: bool) -> None:
    """Without CUDA graphs and with them."""
    few = 1 if dry else 10
    small = {"render.size": 16, "render.batch": 1} if dry else {}
    for name, graphs in (("kernel by kernel", False), ("CUDA graphs", True))[: 1 if dry else 2]:
        take = trainer(device, {"prior_options.graphs": graphs, **small})
        take(few if dry else 80)  # the scene becomes sparse, and what is compiled or chosen at first use is
        seen = look(record, name, take, few, device, dry)
        if graphs or dry:
            details(record, seen, few, device)
            with profile(activities=activities(device)) as short:
                take(2)
            trace = output / "trace.json.gz"
            short.export_chrome_trace(str(trace))
            if trace.stat().st_size > 15e6:
                trace.unlink()


def activities(device: torch.device) -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])


def look(
    record: Record, name: str, take: Callable[[int], None], few: int, device: torch.device, dry: bool
) -> Any:
    """Wall time, waits, kernels; in this order, for each disturbs the one before more. Returns what the profiler saw."""
    row: dict[str, Any] = {"predictions": name, "wall ms": milliseconds(take, few if dry else 100, device)}
    if device.type == "cuda":
        found = waits(take, few)
        row["the host waits"] = sum(found.values()) / few
        for where, count in found.most_common(25):
            record.row("Waits by line", {"predictions": name, "line": where, "a step": count / few})
    with profile(activities=activities(device)) as seen:
        looked_on = milliseconds(take, few, device)
    events = on_device(seen, device)
    busy = covered((event.time_range.start, event.time_range.end) for event in events) / 1000 / few
    row |= {
        "device busy ms": busy,
        "busy share": busy / row["wall ms"],
        "kernels and copies": len(events) / few,
        "launches": launches(seen.key_averages()) / few,
        "wall ms under the profiler": looked_on,
    }
    record.row("A step of the main job", row)
    return seen


def on_device(seen: Any, device: torch.device) -> list[Any]:
    return kernels(seen.events(), DeviceType.CUDA if device.type == "cuda" else DeviceType.CPU)


def details(record: Record, seen: Any, few: int, device: torch.device) -> None:
    """What takes the device's time, and the host's."""
    events = on_device(seen, device)
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
