"""Test the doctor's findings about output_dir: whatever the run would refuse is an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.doctor import SETTINGS, edit, look

from fastkd.runs.output_directory import open_record
from fastkd.trainer import DistillationConfig


def test_a_new_directory(place: Path) -> None:
    assert not {"output_taken", "output_unwritable"} & set(look())
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"output_dir": "teacher"}, "is also the directory of teacher (teacher)"),
        ({"output_dir": "student"}, "is also the directory of model (student)"),
        ({"output_dir": "."}, "holds config.yaml, which no run of fastkd distill or train wrote there"),
        ({"resume_from_checkpoint": "nowhere"}, "there is no checkpoint"),
    ],
)
def test_what_the_run_refuses(place: Path, fields: dict[str, Any], found: str) -> None:
    Path("config.yaml").write_text("model: student")
    finding = look(**fields)["output_taken"]
    assert finding.severity == "error" and found in finding.found and finding.remedy
    with pytest.raises(ValueError) as refused:
        open_record(DistillationConfig(**{**SETTINGS, **fields}))
    assert str(refused.value) == f"{finding.found}: {finding.remedy}"


def test_the_directory_of_another_run(place: Path) -> None:
    """A run of `fastkd train` is compared as that command sets its fields."""
    train = {"teacher": None, "kd_ratio": 0.0}
    record = open_record(DistillationConfig(**{**SETTINGS, **train}))
    record.begin({}, writes=True)
    Path("out/model.safetensors").write_bytes(b"weights")
    assert "output_taken" not in look(teacher=None)
    assert "(teacher" not in look(teacher=None).get("output_taken", "")
    assert "teacher (unset, now teacher)" in look()["output_taken"].found
    assert "output_taken" not in look(resume_from_checkpoint="false")
    edit("out/run.json", settings=json.loads(Path("out/run.json").read_text())["settings"] | {"seed": 7})
    assert "other settings (seed (" in look(teacher=None)["output_taken"].found


def test_a_directory_that_cannot_be_written(place: Path) -> None:
    finding = look(output_dir="run.yaml/out")["output_unwritable"]
    assert finding.severity == "error" and "run.yaml is a file" in finding.found


def test_checkpoints_without_the_optimizer(place: Path) -> None:
    assert look(save_only_model=True)["save_only_model"].severity == "note"
    assert "save_only_model" not in look(save_only_model=True, save_strategy="no")
    assert "save_only_model" not in look()
