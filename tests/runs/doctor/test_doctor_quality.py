"""Test the doctor's findings that need weights: about the teacher, and about a head that is not linear."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from support.doctor import learned, look, row, write_rows
from support.tiny import llama


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


def test_a_packed_text_is_tried_in_pieces(place: Path) -> None:
    """A text file is one document, which no model could read as a whole; the run cuts it into pieces."""
    Path("plays.txt").write_text("\n".join(f"w{i % 45} w{i * 7 % 45}" for i in range(1500)))
    files = {"train_file": "plays.txt", "eval_file": "plays.txt"}
    flat = llama(1, hidden=24, tied=False)
    with torch.no_grad():
        flat.lm_head.weight.mul_(0.1)
    flat.save_pretrained("teacher")
    found = look(fast=False, packing=True, cache_top_k=4, **files)
    judged = [finding for name, finding in found.items() if name.startswith("teacher_")]
    assert ["on 64 rows of eval_file" in finding.found for finding in judged] == [True], found
    assert "of train_file" in found["cache_would_hold_little"].found


def test_prompts_alone_say_nothing_of_a_teacher(place: Path) -> None:
    learned(24, 0).save_pretrained("teacher")
    write_rows("train.jsonl", [{"prompt": row(i)["prompt"]} for i in range(40)])
    found = look(fast=False, eval_file=None, lmbda=1.0)
    assert not any(
        finding.severity == "error" or name.startswith("teacher_") for name, finding in found.items()
    )


def test_classifiers_without_a_padding_token(place: Path) -> None:
    """Decoders that classify are measured in batches although their config names no padding token."""
    write_rows("train.jsonl", [{"text": "w1 w2 w3"[: 2 + 3 * (i % 3)], "label": i % 3} for i in range(12)])
    for seed, side in enumerate(("student", "teacher")):
        config = transformers.LlamaConfig.from_pretrained(side, num_labels=3, pad_token_id=None)
        torch.manual_seed(seed)
        transformers.LlamaForSequenceClassification(config).save_pretrained(side)
    found = look(fast=False, eval_file=None, task="classification", model_init="pretrained")
    assert {"teacher_guesses", "teacher_better", "teacher_no_better"} & set(found)


def test_a_head_that_only_its_weights_show_not_to_be_linear(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that is not linear is found only by the slow checks, which load weights."""
    learned(24, 60).save_pretrained("teacher")
    monkeypatch.setattr("fastkd.trainer.heads._reproduces", lambda *_: False)
    assert "not those of its linear head alone" in look(fast=False)["fused_head"].found
    assert "fused_head" not in look(fast=True)
