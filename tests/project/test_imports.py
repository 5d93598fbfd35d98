"""``import fastkd`` works in a fresh process with any Triton or none, and whichever module comes first."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

REPORT = "import fastkd, json; print(json.dumps(fastkd.available_backends()))"
# Code that makes Triton look older than 3.4.
OLD = (
    "import triton, triton.language as tl\n"
    "for module in (triton, tl):\n"
    "    if hasattr(module, 'constexpr_function'): del module.constexpr_function\n"
)


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment
    )


def report(before: str, **environment: str) -> dict[str, str]:
    child = run(before + REPORT, **environment)
    assert child.returncode == 0, child.stderr
    found: dict[str, str] = json.loads(child.stdout)
    return found


def test_without_triton() -> None:
    found = report("import sys; sys.modules['triton'] = None\n")
    assert found["native:cpu"] == found["reference:cpu"] == "available"
    assert "cannot be imported" in found["triton:cuda"] and "pip install triton" in found["triton:cuda"]


def test_with_an_old_triton() -> None:
    triton = pytest.importorskip("triton")
    found = report(OLD)
    assert found["native:cpu"] == found["reference:cpu"] == "available"
    for place in ("triton:cuda", "triton:cpu"):
        assert "Triton 3.4 or newer" in found[place] and triton.__version__ in found[place]


@pytest.mark.repeats(2)
@pytest.mark.parametrize(
    ("triton", "numpy", "interpret", "missing"),
    [("3.6.0", "2.4.1", "1", True), ("3.6.0", "2.3.5", "1", False), ("3.7.0", "2.4.1", "1", False),
     ("3.6.0", "2.4.1", "0", False)],
)  # fmt: skip
def test_an_interpreter_that_numpy_has_left_behind(
    triton: str, numpy: str, interpret: str, missing: bool
) -> None:
    """Interpreted Triton before 3.7 is reported as missing if NumPy is too new for it."""
    pytest.importorskip("fastkd.backends.triton.launch", exc_type=ImportError)  # fails if Triton is too old
    versions = f"import triton, numpy; triton.__version__, numpy.__version__ = {triton!r}, {numpy!r}\n"
    found = report(versions, TRITON_INTERPRET=interpret)["triton:cpu"]
    if missing:
        assert "Triton 3.6.0" in found and "NumPy 2.4.1" in found and "'numpy<2.4'" in found
    else:
        assert (found == "available") == (interpret == "1") and "NumPy" not in found


def test_a_fault_of_the_kernels_is_not_taken_for_a_missing_triton() -> None:
    """An import error in fastkd's own Triton modules is raised, not reported as a missing Triton."""
    pytest.importorskip("triton")
    if "3.4 or newer" in report("")["triton:cuda"]:
        pytest.skip("this Triton is too old for the kernels")
    child = run("import sys; sys.modules['fastkd.backends.triton.scale'] = None\n" + REPORT)
    assert child.returncode != 0 and "fastkd.backends.triton.scale" in child.stderr


@pytest.mark.repeats(2)
@pytest.mark.parametrize(
    "statement",
    [
        "import fastkd.backends.registry as registry",
        "from fastkd.backends import registry",
        "import fastkd; registry = fastkd.backends.registry",
    ],
)
def test_the_package_of_the_backends_is_a_package_and_a_function(statement: str) -> None:
    """fastkd.backends is a package whose modules can be imported, and can also be called."""
    code = f"{statement}\nassert registry.REGISTRY\nimport fastkd\n"
    child = run(
        code + "assert fastkd.backends() == fastkd.available_backends() == registry.available_backends()"
    )
    assert child.returncode == 0, child.stderr
