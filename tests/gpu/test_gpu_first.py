"""Test the script of the first run on a GPU, on a CPU and with tiny sizes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("first.py")


def run(out: Path, *arguments: str) -> str:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--small"]
    command += ["--out", str(out), "--results", str(out), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_first_run(tmp_path: Path) -> None:
    steps = ("--steps", "correctness", "times", "profile")
    assert run(tmp_path, "--budget", "1", *steps).count("run this again to go on") == 3
    assert "correctness: wrote" in run(tmp_path, "--steps", "correctness")
    assert "correctness: done before" in run(tmp_path, *steps)
    (report,) = tmp_path.glob("gpu-first-cpu-*.md")
    text = report.read_text()
    assert "| chosen | 12 | none | none |" in text, text
    assert text.count("| forward_kl |") == text.count("| jsd |") == 2
    assert "fastkd::dense_kd" in text
    assert text.count("Not run.") == 2  # the suite and the benchmark
