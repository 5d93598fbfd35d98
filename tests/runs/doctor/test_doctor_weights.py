"""Test the doctor's findings about the files of models, which it makes without loading them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.doctor import SETTINGS, WORDS, look, tokenizer
from support.tiny import llama

from fastkd.runs.doctor import Finding
from fastkd.runs.train import run
from fastkd.trainer import DistillationConfig

WEIGHTS = "model.safetensors"


def cut(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize("field", ["model", "teacher"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (cut, "model.safetensors is cut off"),
        (lambda folder: (folder / WEIGHTS).unlink(), "no weights"),
        (
            lambda folder: (folder / WEIGHTS).write_text("version https://git-lfs.github.com"),
            "git-lfs",
        ),
    ],
)
def test_files_that_hold_no_weights(
    place: Path, change: Callable[[Path], Any], words: str, field: str
) -> None:
    """The doctor's error is the one with which the run stops."""
    llama(0).save_pretrained("student")
    change(place / ("student" if field == "model" else "teacher"))
    finding = look(model_init="pretrained")[f"{field}_weights"]
    assert finding.severity == "error" and words in finding.found
    with pytest.raises(ValueError, match=words):
        run(DistillationConfig(**{**SETTINGS, "model_init": "pretrained", "disable_tqdm": True}), "distill")


def test_a_student_from_scratch_needs_no_weights(healthy_findings: dict[str, Finding]) -> None:
    assert "model_weights" not in healthy_findings and "teacher_weights" not in healthy_findings


def test_other_tokens_stop_the_run_too(place: Path) -> None:
    """A vocabulary that the doctor calls an error is refused by the run, before anything is loaded."""
    tokenizer([*WORDS[:10], *reversed(WORDS[10:])]).save_pretrained("teacher")
    found = look()["vocabulary_contents"].found
    args = DistillationConfig(**{**SETTINGS, "disable_tqdm": True})
    with pytest.raises(ValueError) as refused:
        run(args, "distill")
    assert str(refused.value).startswith(found)
