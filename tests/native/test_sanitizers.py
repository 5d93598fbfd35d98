"""Run the CPU kernels under the sanitizers; see ``sanitizers/run.py``."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_nothing_to_report() -> None:
    script = Path(__file__).parent / "sanitizers" / "run.py"
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=1800)
    assert run.returncode == 0, run.stdout + run.stderr
