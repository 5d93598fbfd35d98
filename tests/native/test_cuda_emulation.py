"""Test the CUDA kernels without a GPU: a C++ compiler builds their sources for the CPU.

``cuda_emulation/`` implements the CUDA names that they use, with fibers as threads. This checks arithmetic,
indices and barriers. The hardware's own behaviour (its exponential, its memory order) is left to the tests
marked ``gpu``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.cuda_sources import CSRC, Unit, units

TESTS = Path(__file__).parents[1]
EMULATION = TESTS / "native" / "cuda_emulation"
# No contraction, since the kernels rely on rounded products. No strict aliasing, since the kernels access
# vectors through pointers of another type, which CUDA allows.
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-strict-aliasing"]
FLAGS += ["-Wall", "-Wno-unknown-pragmas", "-Werror"]
LIMIT_S = 600


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a fastkd._C that runs the emulated CUDA kernels for tensors on the CPU."""
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 is needed to build the emulated kernels")
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler on PATH")
    python = sysconfig.get_path("include")
    if not (Path(python) / "Python.h").exists():
        pytest.skip("Python's headers are not installed")
    out = tmp_path_factory.mktemp("cuda_emulation")
    includes = [f"-I{path}" for path in (EMULATION, pybind11.get_include(), python)]
    others = {
        path.name: Unit(path, ())
        for path in (
            *(CSRC / "bindings.cpp", CSRC / "cpu/memory.cpp"),
            EMULATION / "cpu.cpp",
        )
    }

    def compile_one(item: tuple[str, Unit]) -> Path:
        name, unit = item
        result = out / f"{name}.o"
        command = [compiler, *FLAGS, *includes, *unit.flags, "-x", "c++", "-c", str(unit.source)]
        subprocess.run([*command, "-o", str(result)], check=True, timeout=LIMIT_S)
        return result

    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(compile_one, (units() | others).items()))
    library = out / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run([compiler, "-shared", "-o", str(library), *map(str, objects)], check=True, timeout=LIMIT_S)
    return library


@pytest.mark.slow
def test_emulated_kernels(module: Path) -> None:
    # The kernels' own cases, and the tests of the suite that exercise a kernel most.
    own = sorted(EMULATION.glob("cases_*.py"))
    suite_files = ("test_mistakes.py", "test_parity.py", "test_sparse.py")
    files = [*own, *(TESTS / "losses" / name for name in suite_files)]
    files.append(TESTS / "backends" / "test_row_weights.py")
    suite = "(test_mistakes or test_sizes or test_temperatures or test_options or test_sparse)"
    chosen = f"cases_ or {suite} and emulated_cuda and not backwards and not float64"
    chosen += " or test_row_weights and not float64"
    command = [sys.executable, str(EMULATION / "run.py"), str(module), "-q", "-p", "no:cacheprovider"]
    command += ["-k", chosen, *map(str, files)]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "deselected" in done.stdout and " passed" in done.stdout, done.stdout
