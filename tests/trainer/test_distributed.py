"""Test that a batch divided over micro-batches, processes or shards gives the whole batch's step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
Found = tuple[dict[str, Any], dict[str, torch.Tensor]]


def run(folder: Path, processes: int = 1, *arguments: str) -> Found:
    path = os.pathsep.join(filter(None, (str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [
        sys.executable,
        *(launcher if processes > 1 else []),
        str(ROOT / "tests/support/train_processes.py"),
        str(folder),
    ]
    done = subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text()), load_file(folder / "model.safetensors")


def assert_equal(found: Found, expected: Found) -> None:
    (found_log, found_weights), (expected_log, expected_weights) = found, expected
    for a, b in zip(
        [*found_log["logs"], found_log["eval"]], [*expected_log["logs"], expected_log["eval"]], strict=True
    ):
        norms = a.pop("grad_norm", 0.0), b.get("grad_norm", 0.0)
        assert norms[0] == pytest.approx(norms[1], rel=1e-4)  # of small differences, late in the run
        assert a == pytest.approx({name: b[name] for name in a}, rel=1e-6, abs=1e-6)
    # A sharded model saves a tied weight under both of its names.
    assert found_weights.keys() - {"lm_head.weight"} == expected_weights.keys()
    for name, value in expected_weights.items():
        torch.testing.assert_close(
            found_weights[name], value, rtol=1e-5, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return run(tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
def test_two_processes_equal_one(whole: Found, tmp_path: Path) -> None:
    assert_equal(run(tmp_path, 2), whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "arguments"),
    [
        (1, ["--accumulation", "8"]),
        (1, ["--accumulation", "2", "--fused", "false"]),
        (2, ["--accumulation", "2", "--checkpointing"]),
        (4, ["--accumulation", "2"]),
        (2, ["--fsdp"]),
        (4, ["--fsdp", "--accumulation", "2"]),
        (2, ["--fsdp", "--fused", "false", "--checkpointing"]),
    ],
    ids=str,
)
def test_every_division_of_the_batch(
    whole: Found, tmp_path: Path, processes: int, arguments: list[str]
) -> None:
    assert_equal(run(tmp_path, processes, *arguments), whole)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["--fsdp"]], ids=["ddp", "fsdp"])
def test_two_processes_resume_from_a_checkpoint(whole: Found, tmp_path: Path, arguments: list[str]) -> None:
    run(tmp_path, 2, "--steps", "12", "--save-steps", "8", *arguments)
    (tmp_path / "checkpoint-12").rename(tmp_path / "later")
    assert_equal(run(tmp_path, 2, "--save-steps", "100", "--resume", *arguments), whole)
