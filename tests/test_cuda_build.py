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
# Products stay rounded, as on the CPU: a difference of two is then exactly 0 for equal rows.
FLAGS = ("-std=c++17", "-O3", "--expt-relaxed-constexpr", "-fmad=false")
LIMIT_S = 600
# 65,536 registers per multiprocessor: 64 let it hold 1024 threads, 80 let it hold 768, 96 let it hold 640.
# csrc/cuda/dense_kernel.cuh says what takes more than 64.
DEFAULT_REGISTERS, MORE_REGISTERS, EXTRA_REGISTERS = 64, 80, 96
LEAN = ("none", "off_support", "forward_kl", "reverse_kl", "jeffreys")
REGISTERS = {f"dense_{name}.cu": DEFAULT_REGISTERS for name in LEAN}
# One for each dtype that both sides have, and one that takes pairs of dtypes, phases and metrics too. A
# sparse teacher's calls come in phases only.
KERNELS = {
    "dense_rows.cu": 0,
    "device.cu": 0,
    "scale_rows.cu": 3,
    "dense_off_support.cu": 1,
}
DEFAULT_KERNELS = 4

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


def test_flags() -> None:
    """What is tested here is what CMake builds."""
    text = (SOURCES[0].parents[2] / "CMakeLists.txt").read_text()
    assert all(flag in text for flag in FLAGS[2:])


@pytest.mark.parametrize(
    "architecture",
    [pytest.param("80", marks=pytest.mark.long), pytest.param("90", marks=pytest.mark.slow)],
)
def test_registers(architecture: str, tmp_path: Path) -> None:
    target = f"arch=compute_{architecture},code=sm_{architecture}"
    for name, (report, _) in compile_all(tmp_path, "-gencode", target, "-cubin", "-Xptxas", "-v").items():
        assert "warning" not in report, report
        spills = [int(n) for n in re.findall(r"(\d+) bytes spill", report)]
        frames = [int(n) for n in re.findall(r"(\d+) bytes stack frame", report)]
        kernels = re.findall(r"Compiling entry function '(\w+)'.*?Used (\d+) registers", report, re.DOTALL)
        assert len(kernels) == KERNELS.get(name, DEFAULT_KERNELS), name
        assert not any(spills) and not any(frames), report
        for kernel, registers in kernels:
            limit = EXTRA_REGISTERS if "AnyElement" in kernel else REGISTERS.get(name, MORE_REGISTERS)
            assert int(registers) <= limit, f"{kernel}: {registers}"


@pytest.mark.slow
def test_vector_accesses(tmp_path: Path) -> None:
    for name, (_, output) in compile_all(tmp_path, "-arch=compute_80", "-ptx").items():
        # Both sides in at least two sweeps; one side where there is no divergence; files without a kernel.
        loads = {"dense_none.cu": 2, "dense_off_support.cu": 2, "scale_rows.cu": 1}.get(name, 4)
        for kernel in output.read_text().split(".entry")[1:]:
            assert kernel.count("ld.global.v4") >= loads, f"{name}: loads without vectors"
            assert len(re.findall(r"st\.global(\.cs)?\.v4", kernel)) >= 1, f"{name}: stores without vectors"
            generic = re.search(r"\b(ld|st)\.(v[24]\.)?[usbf](16|32|64)\b", kernel)
            assert generic is None, f"{name}: {generic.group()} does not know its address space"
