"""Check the compiled CUDA kernels for registers, spills and vector accesses. Needs nvcc, but no GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from support.cuda_counts import VOCABULARIES, Counts, counts_of, packet_loops, shares, tables, turns_of
from support.cuda_sass import Loop, kernels, loops_of, turns
from support.cuda_sources import CSRC, Unit, units
from support.sass import Instruction, cuobjdump

UNITS = units()
NVCC = shutil.which("nvcc")
# Without fmad products are rounded, as on the CPU: the difference of two is then exactly 0 for equal rows.
FLAGS = ("-std=c++17", "-O3", "--expt-relaxed-constexpr", "-fmad=false")
LIMIT_S = 600
# A multiprocessor has 65,536 registers. With 64 per thread it holds 1024 threads, with 80 it holds 768, with
# 96 it holds 640, with 128 it holds 512. csrc/cuda/loss/kernel_streaming.cuh states what needs more than 64.
# All others have 80.
STREAMING = {
    64: ("scale.cu", "totals.cu", "weights.cu", "none", "off_support", "forward_kl", "reverse_kl"),
    128: ("alpha_beta",),
}
EXTRA = {128: ("alpha_beta", "jsd", "skew_forward_kl", "skew_reverse_kl")}  # all others have 96
SPARSE = {128: ("alpha_beta", "log_acceptance")}  # all others have 96
# Two clusters' blocks of 256 threads on a multiprocessor leave 128 registers to a thread.
CLUSTER = 128
# A block may have 48 KiB of shared memory without asking for more: what a kernel declares, and beside it, in
# that for sparse teachers, 40 bytes for each of 1,024 entries and 32 for the class of all other columns.
DECLARED = (48 << 10) - (1024 * 40 + 32)
# Kernels per file: for each dtype that both sides can have, and for mixed dtypes and metrics, a streaming
# kernel and a cluster kernel; in addition one for sparse teachers, which have no label apart.
KERNELS = {
    "call.cu": 0,
    "cluster_shape.cu": 0,
    "device.cu": 0,
    "scale.cu": 3,
    "totals.cu": 1,
    "weights.cu": 1,
    "none": 8,
    "off_support": 1,
    "decoupled": 8,
}
DEFAULT_KERNELS = 9


def limit_of(name: str, kernel: str) -> int:
    """The registers allowed to a kernel, from its divergence or file and its mangled name."""
    if "cluster_kernel" in kernel:
        return CLUSTER
    if "sparse_kernel" in kernel:
        return next((limit for limit, which in SPARSE.items() if name in which), 96)
    if "AnyElement" in kernel:
        return next((limit for limit, which in EXTRA.items() if name in which), 96)
    return next((limit for limit, which in STREAMING.items() if name in which), 80)


pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not on PATH")


def compile_all(out: Path, *arguments: str) -> dict[str, tuple[str, Path]]:
    """Compile every file; return the compiler's messages and the output file, by divergence or file name."""

    def compile_one(item: tuple[str, Unit]) -> tuple[str, tuple[str, Path]]:
        name, unit = item
        result = out / name
        command = [str(NVCC), *FLAGS, *arguments, *unit.flags, "-o", str(result), str(unit.source)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
        assert done.returncode == 0, done.stderr
        return name, (done.stdout + done.stderr, result)

    with ThreadPoolExecutor() as pool:
        return dict(pool.map(compile_one, UNITS.items()))


def test_flags() -> None:
    """The flags used in these tests are those of the CMake build."""
    text = (CSRC.parent / "CMakeLists.txt").read_text()
    assert all(flag in text for flag in FLAGS[2:])


@pytest.mark.parametrize(
    "architecture",
    [pytest.param("80", marks=pytest.mark.long), pytest.param("90", marks=pytest.mark.slow)],
)
def test_registers(architecture: str, tmp_path: Path) -> None:
    target = f"arch=compute_{architecture},code=sm_{architecture}"
    compiled = compile_all(tmp_path, "-gencode", target, "-cubin", "-Xptxas", "-v")
    for name, (report, output) in compiled.items():
        assert "warning" not in report, report
        frames = [int(n) for n in re.findall(r"(\d+) bytes stack frame", report)]
        found = re.findall(r"Compiling entry function '(\w+)'.*?Used (\d+) registers", report, re.DOTALL)
        assert len(found) == KERNELS.get(name, DEFAULT_KERNELS), name
        assert all(int(n) <= DECLARED for n in re.findall(r"(\d+) bytes smem", report)), report
        if any(frames):
            # A constant of the row, or of the cluster, may be spilled if a loop needs its register. A turn of
            # the loop, of eight columns, then reads at most one. The last sweep of the streaming reverse KL
            # reads one.
            assert max(frames) <= 32, report
            pytest.importorskip("triton", reason="its wheel has the disassembler")
            for code in kernels(cuobjdump(output.read_bytes(), "-sass")).values():
                spilled = [
                    sum(n for op, n in turn.items() if op.startswith(("LDL", "STL"))) for turn in turns(code)
                ]
                assert max(spilled, default=0) <= 1, report
        for kernel, registers in found:
            empty = architecture == "80" and "cluster" in kernel
            assert int(registers) <= (8 if empty else limit_of(name, kernel)), f"{kernel}: {registers}"


@pytest.mark.slow
def test_vector_accesses(tmp_path: Path) -> None:
    for name, (_, output) in compile_all(tmp_path, "-arch=compute_90", "-ptx").items():
        if name in ("totals.cu", "weights.cu"):
            continue  # their numbers are one per token, or a few, and of any type
        # Both sides are loaded in at least two sweeps; kernels without a divergence load one side only.
        loads = {"none": 2, "off_support": 2, "scale.cu": 1}.get(name, 4)
        for kernel in output.read_text().split(".entry")[1:]:
            if "cluster" in kernel[:80]:
                assert kernel.count("ld.shared.v4") >= loads, f"{name}: loads without vectors"
                assert kernel.count("cp.async.bulk") >= loads / 2, f"{name}: sides without a bulk copy"
                assert "ld.global.v4" not in kernel, f"{name}: logits are read again"
            else:
                assert kernel.count("ld.global.v4") >= loads, f"{name}: loads without vectors"
            assert len(re.findall(r"st\.global(\.cs)?\.v4", kernel)) >= 1, f"{name}: stores without vectors"
            generic = re.search(r"\b(ld|st)\.(v[24]\.)?[usbf](16|32|64)\b", kernel)
            assert generic is None, f"{name}: {generic.group()} does not know its address space"


# A pair of bfloat16 logits moves at least 6 bytes. At 3 TB/s that gives each of an H100's 132 multiprocessors
# (at 1.75 GHz) 0.46 clocks per pair: time for 59 instructions of a thread, of which 7.4 may be special
# functions (these have 16 lanes, the others 128). The budgets count the loops' shortest turns without
# cross-entropy, which adds 4 instructions and, at temperatures other than 1 and 2, two exponentials. The last
# sweep's turn includes the store of the gradient.
@dataclass(frozen=True)
class Budget:
    sweeps: int
    special: float  # exponentials and logarithms per pair of logits
    cluster: float  # instructions per pair in the kernel whose sweeps read shared memory
    streaming: float  # instructions per pair in the kernel whose sweeps read global memory


BUDGETS = {
    "forward_kl": Budget(2, 4, 30, 38),
    "tvd": Budget(3, 6, 48, 62),
    "jsd": Budget(3, 9, 82, 94),
}
KEEPING = ("jsd",)  # divergences whose second sweep can keep logarithms
TITLES = {"forward_kl": "forward KL", "tvd": "TVD", "jsd": "JSD"}
# Instructions of a warp for each row and block, outside the loops.
FIXED, FIRST, LAST, BEFORE_COPY = 840, 1_200, 1_120, 240
DOCUMENT = CSRC.parent / "docs" / "performance.md"


def machine_code(divergence: str, folder: Path) -> dict[str, list[Instruction]]:
    """The instructions of a divergence's kernels for sm_90, by mangled name."""
    pytest.importorskip("triton", reason="its wheel has the disassembler")
    unit, out, target = UNITS[divergence], folder / divergence, "arch=compute_90,code=sm_90"
    command = [str(NVCC), *FLAGS, *unit.flags, "-gencode", target, "-cubin", "-o", str(out), str(unit.source)]
    subprocess.run(command, check=True, timeout=LIMIT_S)
    return kernels(cuobjdump(out.read_bytes(), "-sass"))


def sweeps_of(code: list[Instruction], load: str, group: int, keeps: bool = False) -> list[Loop]:
    """The loops of a kernel that read logits by ``load``, without the copy of the first sweep.

    The copy is for the few rows whose logits are shifted down, and has two more additions per pair.

    Args:
        keeps: whether the second sweep keeps logarithms, for which the last sweep has a copy of its own.
    """
    paths = {path: Counter(code[n].name for n in path.nodes) for path in loops_of(code)}
    packets = {path.nodes for path in packet_loops(code)}
    sweeps = {path: turn for path, turn in paths.items() if load in turn and path.nodes not in packets}
    packed = [path for path, turn in sweeps.items() if any(op.startswith("VHMNMX") for op in turn)]
    of_floats = [path for path, turn in sweeps.items() if turn["FMNMX"] and not turn["MUFU.LG2"]]
    first, again = sorted(packed + of_floats, key=lambda path: sweeps[path]["FADD"])
    # The limits of packed maxima are computed when the anchors change, those of floats for each group.
    assert sweeps[again]["FADD"] == sweeps[first]["FADD"] + 2 * group + 2 * len(packed)
    del sweeps[again]
    found = list(sweeps)
    from_logs = [path for path in found[2:] if sweeps[path]["MUFU.EX2"] == group]
    for path in found:
        assert not any(op.startswith(("LDL", "STL")) for op in sweeps[path])
        loads = 1 + group // 4 if path in from_logs else 2
        assert sum(n for op, n in sweeps[path].items() if op.startswith(("LDS", "LDG"))) == loads
        assert sweeps[path][load] == loads
    return found[:2] + from_logs if keeps else [path for path in found if path not in from_logs]


@pytest.mark.repeats(1)
@pytest.mark.parametrize("divergence", BUDGETS)
def test_instructions_per_pair(divergence: str, tmp_path: Path) -> None:
    budget, group = BUDGETS[divergence], 8
    for name, code in machine_code(divergence, tmp_path).items():
        if "BFloat16" not in name:
            continue
        kind = "cluster" if "cluster" in name else "streaming"
        load = "LDS.128" if kind == "cluster" else "LDG.E.128"
        loops = sweeps_of(code, load, group)
        assert len(loops) == budget.sweeps
        turns = turns_of(code, loops, load, keeps=False)
        found = sum(turn.total() for turn in turns) / group
        special = sum(n for turn in turns for op, n in turn.items() if op.startswith("MUFU")) / group
        print(f"{divergence}, {kind}: {found:.1f} instructions, {special:.1f} special")
        assert found <= getattr(budget, kind)
        assert special <= budget.special


@pytest.mark.slow
def test_documented_shares(tmp_path: Path) -> None:
    """The tables of docs/performance.md are those that follow from the machine code."""
    release = subprocess.run([str(NVCC), "--version"], capture_output=True, text=True, check=True).stdout
    found: dict[tuple[str, int], Counts] = {}
    for divergence in BUDGETS:
        for name, code in machine_code(divergence, tmp_path).items():
            size = 2 if "BFloat16" in name else 4
            if "cluster" not in name or re.search(r"(?<!B)Float16|AnyElement", name):
                continue
            counts = counts_of(code, sweeps_of(code, "LDS.128", 16 // size), "LDS.128")
            if divergence in KEEPING:
                sweeps = sweeps_of(code, "LDS.128", 16 // size, keeps=True)
                counts = replace(counts, keeping=counts_of(code, sweeps, "LDS.128", keeps=True))
            assert counts.fixed <= FIXED and counts.first <= FIRST and counts.last <= LAST
            assert counts.before_copy <= BEFORE_COPY
            found[TITLES[divergence], size] = counts
    ordered = dict(sorted(found.items(), key=lambda item: item[0][1]))
    assert len(ordered) == 2 * len(BUDGETS)
    for least, name in ((0.95, "forward KL"), (0.85, "TVD"), (0.60, "JSD")):
        assert all(shares(ordered[name, 2], vocab, 2)[0] >= least for vocab in VOCABULARIES)
    if "release 13.0" not in release:
        pytest.skip("the documented tables are those of nvcc 13.0")
    table = tables(ordered)
    assert table in DOCUMENT.read_text(), f"docs/performance.md should have:\n\n{table}"
