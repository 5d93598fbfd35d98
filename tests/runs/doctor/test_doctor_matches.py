"""Test the doctor's findings on losses between layers, which need weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from support.doctor import look, write_rows


def matches(**fields: Any) -> list[dict[str, Any]]:
    return [{"student": 1, "teacher": 1, **fields}, {"student": 1, "teacher": 1, "kind": "relation"}]


def test_a_weight_that_drowns_the_task_and_the_one_that_balances_it(place: Path) -> None:
    finding = look(fast=False, feature_matches=matches(weight=1e4), model_init="scratch")["match_drowns"]
    assert finding.severity == "warning" and "feature_matches of kind hidden, weight 1e+04" in finding.found
    balanced = float(finding.remedy.split("weight ")[1].split(" ")[0])
    found = look(fast=False, feature_matches=matches(weight=balanced))
    assert "match_drowns" not in found
    note = found["match_losses"].found
    hidden, logits = (
        float(note.split(f"{a} ")[1].split(b)[0]) for a, b in (("feature_hidden", ","), ("beside", " "))
    )
    assert 0.5 < hidden / logits < 2


def test_the_default_weights_drown_nothing(place: Path) -> None:
    found = look(fast=False, feature_matches=matches(), gradient_match_weight=1.0)
    assert "match_drowns" not in found and "saliency" in found["match_losses"].found
    assert not any(finding.severity == "error" for finding in found.values())


def test_quick_checks_and_runs_without_matches_load_nothing(place: Path) -> None:
    assert not {"match_drowns", "match_losses"} & set(look(fast=True, feature_matches=matches(weight=1e4)))
    assert not {"match_drowns", "match_losses"} & set(look(fast=False))


def test_a_layer_that_does_not_exist(place: Path) -> None:
    finding = look(fast=False, feature_matches=[{"student": 7, "teacher": 1}])["matches"]
    assert finding.severity == "error" and "the student has hidden states from 0 to 1" in finding.found


def test_classifiers_are_compared_too(place: Path) -> None:
    """One of the classifiers is a decoder whose config names no padding token."""
    write_rows("train.jsonl", [{"text": "w1 w2 w3"[: 2 + 3 * (i % 3)], "label": i % 3} for i in range(12)])
    for seed, side in enumerate(("student", "teacher")):
        config = transformers.LlamaConfig.from_pretrained(side, num_labels=3, pad_token_id=None)
        torch.manual_seed(seed)
        transformers.LlamaForSequenceClassification(config).save_pretrained(side)
    given = {"eval_file": None, "task": "classification", "model_init": "pretrained"}
    found = look(fast=False, feature_matches=matches(weight=1e4), gradient_match_weight=0.1, **given)
    assert "kind hidden" in found["match_drowns"].found and "saliency" in found["match_losses"].found
    assert not any(finding.severity == "error" for finding in found.values())
