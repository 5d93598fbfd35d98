"""Peak extra memory of one forward and backward, in a process of its own.

``python -m bench.memory '{"route": "eager", "case": {...}}'`` prints bytes above what the inputs hold.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from bench.cases import Case, make_problem, step
from bench.peers import ROUTES


def _status_bytes(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if match is None:
        raise RuntimeError(f"/proc/self/status has no {field}: peak memory on a CPU needs Linux")
    return int(match[1]) * 1024


def peak_extra(route: str, case: Case) -> int:
    """Bytes, gradient included, that the second call takes over what is held before it."""
    problem = make_problem(case)
    step(ROUTES[route], problem)  # compiles, starts threads, fills lasting caches
    for x in problem.student:
        x.grad = None
    gc.collect()
    if case.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(ROUTES[route], problem)
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from what is held now
    before = _status_bytes("VmRSS")
    step(ROUTES[route], problem)
    return _status_bytes("VmHWM") - before


def peak_extra_in_child(route: str, case: Case) -> int:
    """:func:`peak_extra` in a fresh process with the default allocator, where nothing else holds memory."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    request = json.dumps({"route": route, "case": asdict(case)})
    command = [sys.executable, "-m", "bench.memory", request]
    child = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return int(child.stdout)


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    print(peak_extra(request["route"], Case(**request["case"])))
