"""Test the doctor's findings that need weights: about the teacher, and about a head that is not linear."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.doctor import learned, look


def test_a_teacher_that_has_nothing_to_teach(place: Path) -> None:
    torch.manual_seed(0)
    learned(24, 0).save_pretrained("teacher")
    assert look(fast=False)["teacher_guesses"].severity == "warning"
    assert "teacher_guesses" not in look(fast=True)

    learned(24, 60).save_pretrained("teacher")
    better = look(fast=False)["teacher_better"]
    assert better.severity == "note" and "on 5 rows of eval_file, perplexity is" in better.found

    learned(16, 200).save_pretrained("student")
    learned(24, 12).save_pretrained("teacher")
    finding = look(fast=False, model_init="pretrained", kd_ratio=0.9)["teacher_no_better"]
    assert finding.severity == "warning" and "kd_ratio: 0.9" in finding.found
    assert "set kd_ratio: 0" in finding.remedy


def test_a_head_that_only_its_weights_show_not_to_be_linear(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that is not linear is found only by the slow checks, which load weights."""
    learned(24, 60).save_pretrained("teacher")
    monkeypatch.setattr("fastkd.trainer.heads._reproduces", lambda *_: False)
    assert "not those of its linear head alone" in look(fast=False)["fused_head"].found
    assert "fused_head" not in look(fast=True)
