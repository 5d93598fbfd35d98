"""Measures the peak extra memory of one call on a CPU, in a process of its own.

``python -m fastkd.bench.memory '{"route": "eager", "case": {...}}'`` prints bytes above those of the inputs.
"""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from fastkd.backends.memory import release_memory, trim
from fastkd.bench.cases import Case, make_problem, step

# Environment variables that could make the C library's allocator keep freed memory.
KEEPING = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


def status_bytes(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if match is None:
        raise RuntimeError(f"/proc/self/status has no {field}: the peak of memory on a CPU needs Linux")
    return int(match[1]) * 1024


def peak_extra(route: str, case: Case) -> int:
    """Peak bytes of a second call above the memory in use before it, the gradient included."""
    from fastkd.bench.peers import ROUTES

    problem = make_problem(case)
    loss = ROUTES[route].loss
    step(loss, problem)  # a first call compiles, starts threads and fills lasting caches
    for x in problem.student:
        x.grad = None
    gc.collect()
    release_memory()
    trim()
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark to the memory in use
    before = status_bytes("VmRSS")
    step(loss, problem)
    return status_bytes("VmHWM") - before


def peak_extra_in_child(route: str, case: Case) -> int:
    """Run :func:`peak_extra` in a new process with the default allocator, where nothing else uses memory."""
    request = json.dumps({"route": route, "case": asdict(case)})
    command = ["env", *(part for name in KEEPING for part in ("-u", name))]
    command += [sys.executable, "-m", "fastkd.bench.memory", request]
    child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode:
        last = (child.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise RuntimeError(f"the process that measures memory failed: {last}")
    return int(child.stdout.split()[-1])


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    print(peak_extra(request["route"], Case(**request["case"])))
