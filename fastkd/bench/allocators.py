"""Measures in the two allocator modes of a CPU, each in a process of its own.

By default glibc maps and unmaps every large tensor, and the first access to new pages then costs as much as a
kernel; in the mode ``kept`` freed memory stays mapped. glibc reads these settings when a process starts.
``python -m fastkd.bench.allocators '{...}'`` measures in one mode; :func:`run` starts it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastkd.bench import options
from fastkd.bench.memory import KEEPING
from fastkd.bench.results import NAME, Results, Run
from fastkd.bench.run import describe, run as run_here

# The environment variables of each mode; those of KEEPING that it does not set are removed.
MODES = {
    "default": {},
    "kept": dict(zip(KEEPING, ("0", "100000000000", "67108864"), strict=True)),
}
INTERRUPTED = 130


def run(
    modes: Sequence[str],
    arguments: Mapping[str, Any],
    folder: Path,
    budget: float | None = None,
    fresh: bool = False,
    command: Sequence[str] = (),
) -> Run:
    """Measure in each of ``modes``, and return the content of ``results.json``, which all of them share.

    Args:
        arguments: of :func:`options.select`; JSON must be able to hold them.
        budget, fresh, command: as in :func:`fastkd.bench.run.run`; the budget is that of all modes together.

    Raises:
        RuntimeError: a process ended with an error. Its measurements until then are in the file.
    """
    began, left = time.perf_counter(), 0
    selection = options.select(**arguments)
    Results(folder, describe(selection, command), fresh)  # starts over or refuses before any process starts
    path = folder / NAME
    for mode in modes:
        print(f"--- {selection.device}, allocator: {mode}", flush=True)
        spent = time.perf_counter() - began
        request = {
            "arguments": arguments,
            "folder": str(folder),
            "budget": None if budget is None else max(0.0, budget - spent),
            "command": list(command),
            "allocator": mode,
        }
        status = subprocess.run([*_environment(mode), *_measuring(request)]).returncode
        if status == INTERRUPTED:
            raise KeyboardInterrupt
        if status:
            raise RuntimeError(f"the process with the allocator {mode!r} ended with status {status}")
        left += json.loads(path.read_text())["cases_left"]
    found: Run = json.loads(path.read_text())
    found["cases_left"] = left
    path.write_text(json.dumps(found, indent=1) + "\n")
    return found


def _environment(mode: str) -> list[str]:
    """The command that starts another one in a mode."""
    unset = [part for name in KEEPING for part in ("-u", name)]
    return ["env", *unset, *(f"{name}={value}" for name, value in MODES[mode].items())]


def _measuring(request: Mapping[str, Any]) -> list[str]:
    return [sys.executable, "-m", "fastkd.bench.allocators", json.dumps(request)]


def main(request: Mapping[str, Any]) -> int:
    """Measure what a request of :func:`run` describes, and return the exit status."""
    arguments = dict(request["arguments"])
    arguments["heads"] = [tuple(pair) for pair in arguments.get("heads") or ()] or None
    try:
        run_here(
            options.select(**arguments),
            Path(request["folder"]),
            request["budget"],
            command=request["command"],
            allocator=request["allocator"],
        )
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
