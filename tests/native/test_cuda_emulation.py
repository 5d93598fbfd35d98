"""Test the CUDA kernels without a GPU: a C++ compiler builds their sources for the CPU.

``cuda_emulation/`` implements the CUDA names that they use, with fibers as threads, and interprets their
inline PTX. This checks arithmetic, indices and barriers, with the threads in order and at random;
``test_cuda_protocol.py`` has more random schedules, and planted faults. The machine code and the time are
left to ``test_cuda_build.py`` and the tests marked ``gpu``.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from support.cuda_emulation import COMPILER, EMULATION, LIMIT_S, compile_all, link, machine, sources
from support.cuda_sources import CSRC, Unit, units

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a fastkd._C that runs the emulated CUDA kernels for tensors on the CPU."""
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 is needed to build the emulated kernels")
    if COMPILER is None:
        pytest.skip("no C++ compiler on PATH")
    python = sysconfig.get_path("include")
    if not (Path(python) / "Python.h").exists():
        pytest.skip("Python's headers are not installed")
    out = tmp_path_factory.mktemp("cuda_emulation")
    host = (CSRC / "bindings.cpp", CSRC / "cpu/memory.cpp", EMULATION / "cpu.cpp")
    files = units() | machine() | {path.name: Unit(path, ()) for path in host}
    includes = [f"-I{path}" for path in (pybind11.get_include(), python)]
    objects = compile_all(files, sources(out), out / "objects", *includes)
    return link(objects, out / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}", "-shared")


@pytest.mark.slow
def test_emulated_kernels(module: Path) -> None:
    # The kernels' own cases, and the tests of the suite that exercise a kernel most.
    own = sorted(EMULATION.glob("cases_*.py"))
    suite_files = ("test_mistakes.py", "test_parity.py", "test_sparse.py")
    files = [*own, *(TESTS / "losses" / name for name in suite_files)]
    files.append(TESTS / "backends" / "test_reduction_kernels.py")
    suite = "(test_mistakes or test_sizes or test_temperatures or test_options or test_sparse)"
    chosen = f"cases_ or {suite} and emulated_cuda and not shuffled and not float64"
    chosen += " or test_reduction_kernels and not float64"
    command = [sys.executable, str(EMULATION / "run.py"), str(module), "-q", "-p", "no:cacheprovider"]
    command += ["-k", chosen, *map(str, files)]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, timeout=3 * LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "deselected" in done.stdout and " passed" in done.stdout, done.stdout
