"""``python -m bench.run``: runs the whole suite in both allocator modes into one table and one JSON file."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from bench.report import read_run, save, table
from bench.sizes import ELEMENTS

ROOT = Path(__file__).resolve().parent.parent
RAW = ROOT / "build" / "bench"
RESULTS = ROOT / "bench" / "results"

# By default glibc maps and unmaps every large tensor, and the first access to new pages then costs as much as
# a kernel. So each time is measured in both modes, in separate processes, since glibc reads its settings at
# their start.
ALLOCATORS = {
    "default": {},
    "kept": {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": "100000000000",
        "MALLOC_TOP_PAD_": "67108864",
    },
}


def measure(allocator: str, arguments: argparse.Namespace) -> tuple[Path, int]:
    """Run pytest-benchmark in one allocator mode, and return the path of its JSON and its exit status."""
    RAW.mkdir(parents=True, exist_ok=True)
    raw = RAW / f"{arguments.device}-{allocator}.json"
    raw.unlink(missing_ok=True)
    selected = arguments.k or ""
    if allocator != "default":  # memory is measured once, with the mode that returns freed memory
        selected = f"({selected}) and not memory" if selected else "not memory"
    elements = arguments.elements // 4 if arguments.quick else arguments.elements
    if arguments.quick:
        quick = "(V32000 or V151936 or linear or variant) and not alone"
        selected = f"({selected}) and {quick}" if selected else quick
    command = [
        sys.executable,
        "-m",
        "pytest",
        "bench",
        "--benchmark-only",
        "--benchmark-quiet",
        "-v",
        "--tb=short",
    ]
    command += [
        "-p",
        "no:cacheprovider",
        "--no-header",
        "--disable-warnings",
        "-k",
        selected,
        f"--benchmark-json={raw}",
    ]
    command += [f"--device={arguments.device}", f"--elements={elements}"]
    status = subprocess.run(command, cwd=ROOT, env={**os.environ, **ALLOCATORS[allocator]}).returncode
    return raw, status


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--allocators", nargs="+", choices=tuple(ALLOCATORS), help="on a CPU (default: both)")
    parser.add_argument(
        "--elements", type=int, default=ELEMENTS, help="logits per tensor (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="a quarter of the size, two vocabularies")
    parser.add_argument("-k", help="run only what pytest selects with this, such as 'V151936 and float32'")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder for the results (default: %(default)s)"
    )
    arguments = parser.parse_args()
    # A GPU's memory comes from torch's own allocator, so the C library's mode has no effect on it.
    allocators = (arguments.allocators or list(ALLOCATORS)) if arguments.device == "cpu" else ["default"]

    raws, worst = {}, 0
    for allocator in allocators:
        print(f"--- {arguments.device}, allocator: {allocator}", flush=True)
        raws[allocator], status = measure(allocator, arguments)
        worst = max(worst, status)
    if not all(raw.exists() and raw.stat().st_size for raw in raws.values()):
        print("Nothing was measured: see the messages above.")
        return worst or 1
    run = read_run(raws)
    print(table(run))
    for path in save(run, arguments.results):
        print(f"saved {path}")
    if worst:
        print("Some measurements failed: see above. What failed has no number in the table.")
    return worst


if __name__ == "__main__":
    sys.exit(main())
