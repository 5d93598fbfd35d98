"""Two processes must do what one does with the whole batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent


def test_two_processes_equal_one(tmp_path: Path) -> None:
    path = os.pathsep.join(filter(None, (str(HERE.parents[1]), str(HERE), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    launchers = {"one": [], "two": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]}
    for name, launcher in launchers.items():
        command = [sys.executable, *launcher, str(HERE / "two_processes.py"), str(tmp_path / name)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / name / "found.json").read_text()) for name in launchers)
    for a, b in zip([*one["logs"], one["eval"]], [*two["logs"], two["eval"]], strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in launchers)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-5, atol=1e-6)
