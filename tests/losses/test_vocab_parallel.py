"""Test ``group=`` with processes over loopback: ranks with their own columns equal the whole vocabulary."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastkd
from fastkd.backends.record import bytes_per_token
from fastkd.divergences import DIVERGENCES
from fastkd.spec import LossSpec

HERE = Path(__file__).parent


def run_ranks(size: int, folder: Path, backends: list[str]) -> None:
    path = os.pathsep.join(
        filter(None, (str(HERE.parents[1]), str(HERE.parent), os.environ.get("PYTHONPATH")))
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    script = str(HERE / "vocab_parallel_rank.py")
    ranks = []
    for rank in range(size):
        command = [sys.executable, script, str(rank), str(size), str(folder / "init"), *backends]
        ranks.append(
            subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    outputs = []
    try:
        outputs = [rank.communicate(timeout=240)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, output in zip(ranks, outputs, strict=True):
        assert rank.returncode == 0 and "all equal" in output, output


@pytest.mark.parametrize(
    ("size", "backends"),
    [
        (2, ["native"]),
        pytest.param(2, ["reference"], marks=pytest.mark.slow),
        pytest.param(4, ["native"], marks=pytest.mark.slow),
    ],
)
def test_ranks_equal_the_whole(size: int, backends: list[str], tmp_path: Path) -> None:
    run_ranks(size, tmp_path, backends)


@pytest.mark.triton_interpret
@pytest.mark.slow
def test_ranks_equal_the_whole_in_triton(tmp_path: Path) -> None:
    run_ranks(2, tmp_path, ["triton"])


def test_bytes_per_token_are_few() -> None:
    for divergence in DIVERGENCES:
        spec = LossSpec(divergence, 0.3, 0.3, 2.0, 2.0, 1.0, 1.0, 0.5, 0.1, 1e-3, -100, 100)
        assert bytes_per_token(spec) <= 104 and bytes_per_token(spec, metrics=True) <= 136


def test_refused() -> None:
    with pytest.raises(TypeError, match="process group, not str"):
        fastkd.kd_loss(torch.zeros(2, 5), torch.zeros(2, 5), group="tp")
