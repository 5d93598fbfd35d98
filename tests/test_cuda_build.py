"""What the compiler says of the CUDA kernels: registers, spills, vector accesses. Needs nvcc, not a GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).parent.parent / "csrc" / "cuda").glob("*.cu"))
NVCC = shutil.which("nvcc")
FLAGS = ("-std=c++17", "-O3", "--expt-relaxed-constexpr")
LIMIT_S = 300
# 65,536 registers per multiprocessor: 64 let it hold 1024 threads, 80 let it hold 768.
REGISTERS = {"dense_jsd.cu": 80}
DEFAULT_REGISTERS = 64

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not on PATH")


def compile_all(out: Path, *arguments: str) -> dict[str, tuple[str, Path]]:
    """Compile every file; returns the compiler's words and its output, by file name."""

    def compile_one(source: Path) -> tuple[str, tuple[str, Path]]:
        result = out / source.stem
        command = [str(NVCC), *FLAGS, *arguments, "-o", str(result), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
        assert done.returncode == 0, done.stderr
        return source.name, (done.stdout + done.stderr, result)

    with ThreadPoolExecutor() as pool:
        return dict(pool.map(compile_one, SOURCES))


@pytest.mark.parametrize("architecture", ["80", "90a"])
def test_registers(architecture: str, tmp_path: Path) -> None:
    target = f"arch=compute_{architecture},code=sm_{architecture}"
    kernels = 0
    for name, (report, _) in compile_all(tmp_path, "-gencode", target, "-cubin", "-Xptxas", "-v").items():
        assert "warning" not in report, report
        spills = [int(n) for n in re.findall(r"(\d+) bytes spill", report)]
        frames = [int(n) for n in re.findall(r"(\d+) bytes stack frame", report)]
        registers = [int(n) for n in re.findall(r"Used (\d+) registers", report)]
        kernels += len(registers)
        assert not any(spills) and not any(frames), report
        assert all(n <= REGISTERS.get(name, DEFAULT_REGISTERS) for n in registers), report
    # Of each divergence one for every pair of dtypes, and row scaling for every dtype.
    divergences = sum(s.name.startswith("dense_") for s in SOURCES) - 1
    assert kernels == 9 * divergences + 3


def test_vector_accesses(tmp_path: Path) -> None:
    for name, (_, output) in compile_all(tmp_path, "-arch=compute_80", "-ptx").items():
        # Both sides in at least two sweeps; one side where there is no divergence; files without a kernel.
        loads = {"dense_none.cu": 2, "scale_rows.cu": 1}.get(name, 4)
        for kernel in output.read_text().split(".entry")[1:]:
            assert kernel.count("ld.global.v4") >= loads, f"{name}: loads without vectors"
            assert len(re.findall(r"st\.global(\.cs)?\.v4", kernel)) >= 1, f"{name}: stores without vectors"
            generic = re.search(r"\b(ld|st)\.(v[24]\.)?[usbf](16|32|64)\b", kernel)
            assert generic is None, f"{name}: {generic.group()} does not know its address space"
