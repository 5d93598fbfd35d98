"""``python run.py``: build the CPU kernels for ARM, run them in an emulator, and compare with this machine's.

Compiles ``csrc/cpu`` and ``results.cpp`` for this machine and for aarch64 into a temporary folder, runs the
second program under QEMU and exits with 1 if a number differs by more than roundings. Both programs use the
128-bit vectors, whose results on this machine the other tests compare with float64. Needs g++,
aarch64-linux-gnu-g++ and qemu-aarch64 (on Debian and Ubuntu: g++-aarch64-linux-gnu, qemu-user).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[2] / "csrc"
COMPILERS = {"here": "g++", "aarch64": "aarch64-linux-gnu-g++"}
EMULATOR = "qemu-aarch64"
SOURCES = ("cpu/dispatch.cpp", "cpu/isa/baseline.cpp", "cpu/isa/double.cpp")
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-Wno-psabi", f"-I{CSRC}")
# Differences relative to the largest number of a result: by the dtype's number in csrc/params.h (float32,
# bfloat16, float16), a few roundings of what is stored.
TOLERANCE = {"0": 2e-6, "1": 2e-2, "2": 3e-3}
# A loss is a difference of sums near 1, whose roundings do not shrink with it; alpha multiplies it by 4. ARM
# rounds a product and a sum once, where SSE2 rounds twice.
ROUNDINGS = {"losses": 4 * 2.0**-24, "gradients": 0.0}


def build(name: str, folder: Path, pool: ThreadPoolExecutor) -> Path:
    """The program for one machine."""

    def compiled(source: Path) -> str:
        target = folder / f"{name}-{source.stem}.o"
        subprocess.run([COMPILERS[name], *FLAGS, "-c", str(source), "-o", str(target)], check=True)
        return str(target)

    objects = list(pool.map(compiled, [*(CSRC / one for one in SOURCES), HERE / "results.cpp"]))
    program = folder / name
    # A static program needs no libraries of the other machine.
    subprocess.run([COMPILERS[name], "-static", "-pthread", *objects, "-o", str(program)], check=True)
    return program


def results(command: list[str]) -> dict[str, np.ndarray]:
    """The numbers by name; those of one name follow each other."""
    found: dict[str, list[float]] = {}
    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=900).stdout
    for line in out.splitlines():
        name, *numbers = line.split(" ")
        found.setdefault(name, []).extend(map(float, numbers))
    return {name: np.array(numbers) for name, numbers in found.items()}


def differences(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> list[str]:
    """A sentence for each call whose numbers differ."""
    assert ours.keys() == theirs.keys()
    found = []
    for name, here in ours.items():
        there = theirs[name]
        finite = np.isfinite(here)
        if here.shape != there.shape or not np.array_equal(here[~finite], there[~finite], equal_nan=True):
            found.append(f"{name}: NaN or infinities at other places")
            continue
        _, dtype, _, _, kind = name.split("/")
        bound = TOLERANCE[dtype] * np.abs(here[finite]).max(initial=0.0) + ROUNDINGS[kind]
        worst = np.abs(here[finite] - there[finite]).max(initial=0.0)
        if not worst <= bound:
            found.append(f"{name}: a difference of {worst:.3g}, where {bound:.3g} is allowed")
    return found


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="fastkd-aarch64-") as root:
        folder = Path(root)
        with ThreadPoolExecutor(os.cpu_count()) as pool, ThreadPoolExecutor(len(COMPILERS)) as builds:
            programs = dict(
                zip(COMPILERS, builds.map(lambda name: build(name, folder, pool), COMPILERS), strict=True)
            )
        ours = results([str(programs["here"])])
        theirs = results([EMULATOR, str(programs["aarch64"])])
    wrong = differences(ours, theirs)
    print(f"{len(ours)} results with {sum(map(len, ours.values())):,} numbers: {len(wrong)} differ")
    print("\n".join(wrong[:20]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
