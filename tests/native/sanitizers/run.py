"""``python run.py``: run the CPU kernels under AddressSanitizer with UBSan, and under ThreadSanitizer.

Compiles ``csrc/cpu`` and ``driver.cpp`` twice into a temporary folder (no Python, no torch in them), runs
both programs and exits with 1 if either reports anything. Needs g++; takes four to six minutes on two cores.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[2] / "csrc"
X86 = platform.machine() in ("x86_64", "AMD64")

COMMON = ["-std=c++17", "-O1", "-g1", "-ffp-contract=off", "-Wno-psabi", f"-I{CSRC}"]
BUILDS = {
    "address,undefined": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}
# Without inlining, instrumented code compiles in a fraction of the time. The small vectors of the baseline
# would then run too slowly.
NOT_INLINED = {"address,undefined": {"avx2", "avx512", "double"}}
# The same flags as in CMakeLists.txt.
ISA = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"],
}


def sources() -> list[Path]:
    kernels = [path for path in sorted(CSRC.glob("cpu/**/*.cpp")) if X86 or path.stem not in ISA]
    return [*kernels, HERE / "driver.cpp"]


def compile_one(source: Path, name: str, folder: Path) -> Path:
    flags = [*BUILDS[name], *(["-fno-inline"] if source.stem in NOT_INLINED.get(name, ()) else [])]
    target = folder / f"{source.stem}.o"
    options = [*COMMON, *flags, *ISA.get(source.stem, []), *(["-DFASTKD_X86"] if X86 else [])]
    if subprocess.run(["g++", *options, "-c", str(source), "-o", str(target)]).returncode != 0:
        raise SystemExit(f"{source.name} does not compile")
    return target


def execute(program: Path) -> int:
    # ThreadSanitizer cannot place its shadow memory if the Linux kernel randomises addresses over too wide a
    # range.
    prefix = ["setarch", platform.machine(), "--addr-no-randomize"] if shutil.which("setarch") else []
    options = {
        "ASAN_OPTIONS": "detect_stack_use_after_return=1:strict_init_order=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1",
    }
    return subprocess.run([*prefix, str(program)], env={**os.environ, **options}, timeout=900).returncode


def build_and_run(name: str, folder: Path, pool: ThreadPoolExecutor) -> int:
    """The exit code of the driver built with one set of sanitizers."""
    flags = BUILDS[name]
    print(f"-fsanitize={name}: building {', '.join(source.name for source in sources())}", flush=True)
    objects = list(pool.map(lambda source: str(compile_one(source, name, folder)), sources()))
    program = folder / "driver"
    subprocess.run(["g++", *flags, "-pthread", *objects, "-o", str(program)], check=True)
    print(f"-fsanitize={name}: running", flush=True)
    started = time.perf_counter()
    code = execute(program)
    print(f"-fsanitize={name}: exit {code} after {time.perf_counter() - started:.0f} s", flush=True)
    return code


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="fastkd-sanitizers-") as root:
        folders = {name: Path(root, name.split(",")[0]) for name in BUILDS}
        for folder in folders.values():
            folder.mkdir()
        with ThreadPoolExecutor(os.cpu_count()) as pool, ThreadPoolExecutor(len(BUILDS)) as builds:
            running = {name: builds.submit(build_and_run, name, folders[name], pool) for name in BUILDS}
            failed = [name for name, job in running.items() if job.result() != 0]
    print(f"reports from: {', '.join(failed)}" if failed else "no reports")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
