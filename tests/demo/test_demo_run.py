"""Test the demo in this process, at its toy size."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from fastkd.demo.run import run
from fastkd.trainer.models import Requested
from fastkd.trainer.teachers import LiveTeacher


@pytest.mark.slow
def test_the_teacher_is_evaluated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each held-out batch runs through the teacher once, for all evaluations of student and control."""
    seen: Counter[bytes] = Counter()
    call = LiveTeacher.__call__

    def counted(self: LiveTeacher, batch: Any, *requested: Requested) -> Any:
        if not torch.is_grad_enabled():
            seen[batch["input_ids"].numpy().tobytes()] += 1
        return call(self, batch, *requested)

    monkeypatch.setattr(LiveTeacher, "__call__", counted)
    found = run(tmp_path / "demo", seed=3, quick=True)
    assert seen and set(seen.values()) == {1}
    for name in ("student", "control"):
        assert found[name]["eval"]["agreement"] > 0
