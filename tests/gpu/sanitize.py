"""``python tests/gpu/sanitize.py``: run the kernels under compute-sanitizer, part of the CUDA toolkit.

Runs workload.py once for each tool and set of kernels; the tools' output goes to files in ``--logs``. The
exit status is 0 if nothing was found. It is also 0 if compute-sanitizer is not installed, which is printed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOUND = 86  # compute-sanitizer's exit status if it found something
LIMIT_S = 1800

# The arguments of workload.py, and parts of the names of the kernels to watch; others run at full speed.
RUNS = {
    # Clusters where the GPU has them, one for all rows of a call.
    "native": (["--backend", "native", "--rows", "16"], ["fastkd"]),
    "native-stream": (["--backend", "native", "--kernel", "stream"], ["fastkd"]),
    "triton": (["--backend", "triton"], ["dense_rows", "scale_rows"]),
}
TOOLS = {
    "memcheck": "accesses outside of allocations, misaligned ones",
    "racecheck": "shared memory written and read without a barrier between",
    "synccheck": "barriers that not all threads reach",
    # Not a default, because it must watch every kernel, torch's own too, to know which memory was written.
    "initcheck": "reads of memory that nobody has written",
}
DEFAULT = ("memcheck", "racecheck", "synccheck")


def find() -> str | None:
    """The path of compute-sanitizer, from PATH or from the toolkit's folder."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=f"{home}/bin")


def command(program: str, tool: str, run: str, device: str) -> list[str]:
    names = [] if tool == "initcheck" else RUNS[run][1]
    watched = [word for name in names for word in ("--kernel-regex", f"kns={name}")]
    # Watch all processes, because another program may start the Python interpreter.
    options = ["--tool", tool, "--target-processes", "all", "--error-exitcode", str(FOUND), *watched]
    return [program, *options, *bare(run, device)]


def bare(run: str, device: str) -> list[str]:
    return [sys.executable, str(HERE / "workload.py"), "--device", device, *RUNS[run][0]]


def environment() -> dict[str, str]:
    # Without torch's cache each tensor is a separate allocation, so that an access past its end is noticed.
    return {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", nargs="+", choices=tuple(RUNS), default=list(RUNS), help="(default: all)")
    parser.add_argument(
        "--tool", nargs="+", choices=tuple(TOOLS), default=list(DEFAULT), help="(default: all but initcheck)"
    )
    parser.add_argument("--device", default="cuda", help="cpu shows that the workload itself is right")
    parser.add_argument("--logs", type=Path, default=Path("build/gpu-logs"), help="(default: %(default)s)")
    options = parser.parse_args()
    program = find()
    if program is None:
        print("skipped: compute-sanitizer is neither on PATH nor in $CUDA_HOME/bin; nothing was checked")
        return 0
    options.logs.mkdir(parents=True, exist_ok=True)
    found = False
    for run in options.run:
        print(f"{run}: without a tool first, so that Triton compiles at full speed", flush=True)
        subprocess.run(bare(run, options.device), check=True, timeout=LIMIT_S)
        for tool in options.tool:
            log = options.logs / f"sanitizer-{run}-{tool}.log"
            print(f"{run}, {tool} ({TOOLS[tool]}): running, see {log}", flush=True)
            start = time.monotonic()
            with log.open("w") as out:
                call = command(program, tool, run, options.device)
                done = subprocess.run(call, stdout=out, stderr=out, env=environment(), timeout=LIMIT_S)
            said = {0: "nothing found", FOUND: "FOUND SOMETHING"}
            verdict = said.get(done.returncode, f"FAILED with exit status {done.returncode}")
            print(f"{run}, {tool}: {verdict} in {time.monotonic() - start:.0f} s", flush=True)
            found |= done.returncode != 0
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
