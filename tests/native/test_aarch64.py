"""Run the CPU kernels for ARM in an emulator; see ``aarch64/run.py``."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = ("g++", "aarch64-linux-gnu-g++", "qemu-aarch64")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")
def test_same_results_on_arm() -> None:
    script = Path(__file__).parent / "aarch64" / "run.py"
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=1800)
    assert run.returncode == 0, run.stdout + run.stderr
