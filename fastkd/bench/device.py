"""Measures time and memory of a device; nothing else differs between a CPU and a GPU."""

from __future__ import annotations

import gc
import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from fastkd.backends.memory import trim
from fastkd.bench import memory
from fastkd.bench.cases import Case, Problem, step
from fastkd.bench.routes import Route

Call = Callable[[], object]

# The most calls per measurement: enough for quantiles, and few enough if a call takes a second.
MOST_CALLS = 50
# Total size of a measurement's inputs in sizes of the last cache, so that no call finds its inputs there.
CACHES = 8
MOST_SETS = 16


class Device(Protocol):
    """The operations that the benchmark needs from a device."""

    kind: str
    where: torch.device  # where the tensors are
    least_calls: int

    def name(self) -> str: ...

    def cache_bytes(self) -> int:
        """Bytes of the last cache before memory."""
        ...

    def free_bytes(self) -> int: ...

    def wait(self) -> None: ...

    def clock(self, calls: Sequence[Call], count: int) -> list[float]:
        """Seconds of each of ``count`` calls; the clock goes through ``calls`` in turn."""
        ...

    def peak_extra(self, route: Route, problem: Problem) -> int:
        """Peak memory of one call in bytes above the memory in use before it, the gradient included."""
        ...

    def tidy(self) -> None:
        """Return the memory that an allocator caches to the device."""
        ...


class Cpu:
    """The CPU, with as many threads as torch uses."""

    kind, least_calls = "cpu", 3
    where = torch.device("cpu")

    def name(self) -> str:
        cpuinfo = Path("/proc/cpuinfo")
        match = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
        name = match[1] if match else "CPU"
        return f"{name}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"

    def cache_bytes(self) -> int:
        sizes = [
            p.read_text().strip() for p in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        ]
        units = {"K": 2**10, "M": 2**20}
        found = [int(s[:-1]) * units[s[-1]] for s in sizes if re.fullmatch(r"\d+[KM]", s)]
        return max(found, default=32 * 2**20)

    def free_bytes(self) -> int:
        meminfo = Path("/proc/meminfo")
        match = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text()) if meminfo.exists() else None
        return int(match[1]) * 1024 if match else 4 * 2**30

    def wait(self) -> None:
        pass

    def clock(self, calls: Sequence[Call], count: int) -> list[float]:
        seconds = []
        for i in range(count):
            start = time.perf_counter()
            calls[i % len(calls)]()
            seconds.append(time.perf_counter() - start)
        return seconds

    def peak_extra(self, route: Route, problem: Problem) -> int:
        return memory.peak_extra_in_child(route.name, problem.case)

    def tidy(self) -> None:
        # torch keeps no cache of freed CPU memory, but glibc does if it is told to.
        trim()


class Cuda:
    """The current GPU, on the current stream."""

    kind, least_calls = "cuda", 7
    where = torch.device("cuda")
    # About a millisecond of waiting, queued before each call. Meanwhile the host launches all kernels of the
    # call, so that the events measure the device and not Python.
    head_start_cycles = 2_000_000

    def name(self) -> str:
        return torch.cuda.get_device_name()

    def cache_bytes(self) -> int:
        # Some devices that torch calls "cuda" do not state the size of their L2 cache.
        known = getattr(torch.cuda.get_device_properties(self.where), "L2_cache_size", 0)
        return int(known) or 64 * 2**20

    def free_bytes(self) -> int:
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info()[0])

    def wait(self) -> None:
        torch.cuda.synchronize()

    def clock(self, calls: Sequence[Call], count: int) -> list[float]:
        new_event: Any = torch.cuda.Event
        events = [(new_event(enable_timing=True), new_event(enable_timing=True)) for _ in range(count)]
        for i, (start, end) in enumerate(events):
            torch.cuda._sleep(self.head_start_cycles)
            start.record()
            calls[i % len(calls)]()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in events]

    def peak_extra(self, route: Route, problem: Problem) -> int:
        for x in problem.student:
            x.grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(route.loss, problem)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def tidy(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()


_DEVICES: dict[str, Device] = {"cpu": Cpu(), "cuda": Cuda()}


def of(kind: str) -> Device:
    """The device ``"cpu"`` or ``"cuda"``."""
    return _DEVICES[kind]


def time_calls(device: Device, calls: Sequence[Call], seconds: float) -> list[float]:
    """Seconds of single calls after a warm-up, which together take about ``seconds``."""
    for _ in range(2):
        calls[0]()
    device.wait()
    once = max(1e-9, device.clock(calls, 1)[0])
    count = min(MOST_CALLS, max(device.least_calls, math.ceil(seconds / once)))
    return device.clock(calls, count)


def sets_needed(device: Device, case: Case) -> int:
    """How many sets of inputs the calls must rotate through so that none is still in a cache when reused."""
    return min(MOST_SETS, math.ceil(CACHES * device.cache_bytes() / case.input_bytes))
