"""Test the doctor's findings about classes and other labels of a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from support.doctor import edit, look, write_rows

TASK: dict[str, Any] = {"task": "classification", "eval_file": None}


@pytest.fixture
def classified(place: Path) -> Path:
    """Student and teacher with the classes bad, fair, good, and rows of these."""
    rows = [{"text": f"w{i} w{i + 1}", "label": ("bad", "fair", "good")[i % 3]} for i in range(30)]
    write_rows("train.jsonl", rows)
    for side in ("student", "teacher"):
        transformers.BertConfig(
            vocab_size=48,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=32,
            id2label={0: "bad", 1: "fair", 2: "good"},
            architectures=["BertForSequenceClassification"],
        ).save_pretrained(side)
    return place


def numbered(*labels: Any) -> None:
    write_rows("train.jsonl", [{"text": f"w{i}", "label": labels[i % len(labels)]} for i in range(30)])


def test_healthy_classes(classified: Path) -> None:
    assert not set(look(**TASK)) - {"gpu_unused", "gpu_unseen"}
    assert look(**TASK, kd_ratio=1.0)["labels_unused"].severity == "note"


def test_classes_in_another_order(classified: Path) -> None:
    finding = look(**TASK, class_names=["good", "fair", "bad"])["class_order"]
    assert finding.severity == "note" and "bad, fair, good" in finding.found
    finding = look(**TASK, model_init="pretrained", class_names=["good", "fair", "bad"])
    assert "set class_names to the student's" in finding["unreadable_train_file"].found
    edit("teacher/config.json", id2label={"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"})
    assert look(**TASK)["classes_unnamed"].severity == "warning"


def test_other_classes(classified: Path) -> None:
    found = look(**TASK, class_names=["bad", "fair", "good", "great"])
    assert found["teacher_classes"].severity == "error" and "great" in found["teacher_classes"].found
    assert "great" in found["absent_classes"].found
    refused = look(**TASK, class_names=["bad", "good"])["row_refused"]
    assert "'fair' is not one of the classes" in refused.found
    numbered(0, 1, 2, 3, 4)
    assert "the label 3 is not one of the classes (bad, fair, good)" in look(**TASK)["row_refused"].found
    edit("teacher/config.json", id2label={"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"})
    edit("student/config.json", id2label={"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"})
    assert "the data has 5 classes and the teacher 3" in look(**TASK)["teacher_classes"].found


def test_one_class(classified: Path) -> None:
    numbered("bad")
    assert look(**TASK)["one_class"].severity == "error"


def test_missing_labels(classified: Path) -> None:
    """They are counted; the teacher is learned from there, and without it they are left out."""
    numbered(0, 1, 2, None)
    for ratio, severity in ((0.5, "note"), (1.0, "note"), (0.0, "warning")):
        found = look(**TASK, kd_ratio=ratio)["unlabelled"]
        assert found.severity == severity and found.found.startswith("7 of 30 rows")
    write_rows("train.jsonl", [{"text": f"w{i}"} for i in range(30)])
    assert not [f for f in look(**TASK).values() if f.severity == "error"]
    assert "train_file has no labels" in look(**TASK, kd_ratio=0.0)["labels_missing"].found


def test_several_labels_per_text(classified: Path) -> None:
    for side in ("student", "teacher"):
        edit(f"{side}/config.json", problem_type="multi_label_classification")
    numbered(["bad"], ["fair", "bad"], [])
    found = look(**TASK)
    assert found["absent_classes"].found == "no row looked at has the class good"
    assert not [f for f in found.values() if f.severity == "error"]
    numbered(0, 1)
    assert "a multi-label model reads a list of them" in look(**TASK)["row_refused"].found


def test_numbers_to_predict(classified: Path) -> None:
    numbered(0.5, 1.25)
    for side in ("student", "teacher"):
        edit(f"{side}/config.json", id2label={"0": "LABEL_0"})
    assert "set problem_type: regression" in look(**TASK)["row_refused"].found
    for side in ("student", "teacher"):
        edit(f"{side}/config.json", problem_type="regression")
    assert not [f for f in look(**TASK).values() if f.severity == "error"]
    assert (
        "temperature: 2.0 is for distributions"
        in look(**TASK, temperature=2.0)["unreadable_train_file"].found
    )
    numbered(0.5)
    assert "the label 0.5" in look(**TASK)["one_class"].found
