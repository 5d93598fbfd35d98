"""Test ``gpu/sanitize.py`` without a GPU: its workload runs on the CPU, under a fake compute-sanitizer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "sanitize.py"
PRETENDER = """#!/bin/sh
# compute-sanitizer OPTIONS... PROGRAM ARGUMENTS...
echo "========= $*"
tool=$2
case "$*" in *"--target-processes all --error-exitcode 86 "*) ;; *) exit 5;; esac
test "$PYTORCH_NO_CUDA_MEMORY_CACHING" = 1 || exit 6
while [ "$1" != "PYTHON" ]; do shift; done
"$@" || exit 7
[ "$tool" != "racecheck" ] || exit 86
"""


def sanitize(path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": path, "CUDA_HOME": "/nowhere", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_without_the_program() -> None:
    done = sanitize("/nowhere")
    assert done.returncode == 0 and done.stdout.startswith("skipped: compute-sanitizer is"), done


@pytest.mark.slow
def test_findings_are_reported(tmp_path: Path) -> None:
    program = tmp_path / "compute-sanitizer"
    program.write_text(PRETENDER.replace("PYTHON", sys.executable))
    program.chmod(0o755)
    path, logs = f"{tmp_path}{os.pathsep}{os.environ['PATH']}", str(tmp_path / "logs")
    arguments = ["--device", "cpu", "--run", "native", "--logs", logs, "--tool"]
    done = sanitize(path, *arguments, "memcheck")
    assert done.returncode == 0 and "memcheck: nothing found" in done.stdout, done
    log = (tmp_path / "logs" / "sanitizer-native-memcheck.log").read_text()
    assert "--kernel-regex kns=fastkd" in log and "calls of native, all right" in log
    done = sanitize(path, *arguments, "racecheck")
    assert done.returncode == 1 and "racecheck: FOUND SOMETHING" in done.stdout, done
