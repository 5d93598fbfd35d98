"""The CUDA kernels where there is no GPU: their sources, built for the CPU by a C++ compiler.

``cuda_emulation/`` holds the CUDA names that they use, on fibers. This checks arithmetic, indices, barriers;
what only the hardware does (its own exponential, its memory order) is left to the tests marked ``gpu``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cuda_sources import CSRC, Unit, units

TESTS = Path(__file__).parent
EMULATION = TESTS / "cuda_emulation"
# Products that the kernels want rounded stay so. Vectors go through pointers of another type, as in CUDA.
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-strict-aliasing"]
FLAGS += ["-Wall", "-Wno-unknown-pragmas", "-Werror"]
LIMIT_S = 600


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fastkd._C that runs the CUDA kernels, emulated, for tensors on the CPU."""
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 is needed to build the emulated kernels")
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler on PATH")
    python = sysconfig.get_path("include")
    if not (Path(python) / "Python.h").exists():
        pytest.skip("Python's headers are not installed")
    out = tmp_path_factory.mktemp("cuda_emulation")
    includes = [f"-I{path}" for path in (EMULATION, pybind11.get_include(), python)]
    others = {path.name: Unit(path, ()) for path in (CSRC / "bindings.cpp", EMULATION / "cpu.cpp")}

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
    # The cases of their own, and those of the suite that say most about a kernel.
    files = [EMULATION / "cases.py", TESTS / "test_mistakes.py", TESTS / "test_parity.py"]
    suite = "(test_mistakes or test_sizes or test_temperatures or test_options)"
    chosen = f"cases or {suite} and emulated_cuda and not backwards and not float64"
    command = [sys.executable, str(EMULATION / "run.py"), str(module), "-q", "-p", "no:cacheprovider"]
    command += ["-k", chosen, *map(str, files)]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "deselected" in done.stdout and " passed" in done.stdout, done.stdout
