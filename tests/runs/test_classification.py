"""Test classification from files, as the commands run it: its problems, orders of classes, missing labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.doctor import tokenizer
from support.families import bert
from torch import nn

from fastkd.cli import main

NAMES = ["neg", "mid", "pos"]


def save(folder: str, seed: int, names: list[str] | None = None, problem: str | None = None) -> None:
    made = bert(seed, layers=1)
    if problem == "regression":
        made.classifier = nn.Linear(16, 1)
        made.config.id2label = {0: "LABEL_0"}
    if names is not None:
        made.config.id2label = dict(enumerate(names))
        made.config.label2id = {name: i for i, name in enumerate(names)}
        if len(names) != 3:
            made.classifier = nn.Linear(16, len(names))
    made.config.problem_type = problem
    made.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(labels: list[Any], name: str = "data.jsonl", **columns: str) -> None:
    names = columns or {"text": "w"}
    rows = [
        {**{column: f"{word}{i} w7" for column, word in names.items()}, "label": label}
        for i, label in enumerate(labels)
    ]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(command: str, **fields: Any) -> int:
    settings = {
        "task": "classification", "model": "student", "teacher": "teacher", "train_file": "data.jsonl",
        "eval_file": "data.jsonl", "output_dir": "out", "max_steps": 2, "per_device_train_batch_size": 4,
        "use_cpu": True, "disable_tqdm": True, "report_to": "none", "save_strategy": "no",
    }  # fmt: skip
    chosen = {name: value for name, value in {**settings, **fields}.items() if value is not None}
    Path("run.yaml").write_text(yaml.safe_dump(chosen))
    return main([command, "run.yaml"])


def report(name: str = "out/report.json") -> Any:
    return json.loads(Path(name).read_text())


def config(folder: str = "out") -> Any:
    return json.loads((Path(folder) / "config.json").read_text())


def test_several_labels_per_text() -> None:
    for side, seed in (("student", 0), ("teacher", 1)):
        save(side, seed, problem="multi_label_classification")
    write([[0, 2], [1], [], [0, 1, 2]])
    assert run("distill", control=True) == 0
    found = report()["student"]
    assert {"micro_f1", "macro_f1", "exact_match", "accuracy", "kd", "ce"} <= found["eval"].keys()
    assert "perplexity" not in found["eval"] and "confusion" not in found["classes"]
    assert config()["problem_type"] == "multi_label_classification"
    assert "micro-F1" in Path("out/report.html").read_text()
    assert run("evaluate", model="out", output_dir="looked") == 0
    again = report("looked/evaluate.json")
    assert again["student"]["eval"]["micro_f1"] == pytest.approx(found["eval"]["micro_f1"])
    assert again["teacher"]["eval"]["exact_match"] is not None


def test_yes_or_no() -> None:
    """A head with one sigmoid, as rerankers have it."""
    for side, seed in (("student", 0), ("teacher", 1)):
        save(side, seed, ["LABEL_0"], problem="multi_label_classification")
    write([0, 1, 1, 0])
    assert run("distill") == 0
    found = report()["student"]["eval"]
    assert found["accuracy"] == found["exact_match"]


def test_lists_of_names_make_a_fresh_student_a_multi_label_one() -> None:
    save("student", 0)
    write([["b", "a"], ["c"], [], ["a"]])
    assert run("train", teacher=None, model_init="scratch") == 0
    assert list(config()["id2label"].values()) == ["a", "b", "c"]
    assert config()["problem_type"] == "multi_label_classification"


def test_numbers_to_predict(capsys: pytest.CaptureFixture[str]) -> None:
    for side, seed in (("student", 0), ("teacher", 1)):
        save(side, seed, problem="regression")
    write([0.5, 2.0, 3.25, -1.0])
    assert run("distill") == 0
    found = report()["student"]["eval"]
    assert {"mse", "mae", "pearson", "spearman", "kd", "teacher_mse"} <= found.keys()
    assert "ce" not in found and "mean squared error" in Path("out/report.html").read_text()
    assert run("evaluate", model="out", output_dir="looked") == 0
    assert report("looked/evaluate.json")["teacher"]["eval"]["mse"] == pytest.approx(found["teacher_mse"])
    assert run("cache", output_dir="cached") == 1
    assert "a cache holds distributions, and a regression predicts numbers" in capsys.readouterr().err


def test_numbers_to_predict_from_scratch(capsys: pytest.CaptureFixture[str]) -> None:
    """Decimal numbers are no classes; with the problem set, a fresh student gets one output."""
    save("student", 0)
    write([0.5, 2.0, 3.25, -1.0])
    fields = {"teacher": None, "model_init": "scratch"}
    assert run("train", **fields) == 1
    assert "set problem_type: regression to predict numbers" in capsys.readouterr().err
    assert run("train", **fields, problem_type="regression") == 0
    assert config()["problem_type"] == "regression" and len(config()["id2label"]) == 1


@pytest.mark.parametrize("cached", [False, True])
def test_a_teacher_in_another_order_is_the_same_teacher(cached: bool) -> None:
    """Distilling and evaluating, from names in the data; the cache holds the run's order."""
    write([NAMES[i % 3] for i in range(8)])
    found = []
    for order in ([0, 1, 2], [2, 0, 1]):
        save("student", 0, NAMES)
        teacher = bert(1, layers=1)
        for tensor in (teacher.classifier.weight, teacher.classifier.bias):
            tensor.data = tensor.data[order]
        teacher.config.id2label = {i: NAMES[j] for i, j in enumerate(order)}
        teacher.config.label2id = {NAMES[j]: i for i, j in enumerate(order)}
        teacher.save_pretrained("teacher")
        source, out = "teacher", f"out{order[0]}"
        if cached:
            source = f"cache:cached{order[0]}"
            assert run("cache", output_dir=f"cached{order[0]}") == 0
        assert run("distill", output_dir=out, teacher=source) == 0
        assert run("evaluate", model=out, output_dir=f"{out}/looked", teacher=source) == 0
        parts = report(f"{out}/report.json"), report(f"{out}/looked/evaluate.json")
        found.append([part[who]["eval"] for part in parts for who in ("student", "teacher")])
        assert list(config(out)["id2label"].values()) == NAMES
    for one, other in zip(*found, strict=True):
        same = {name for name in one if not name.endswith(("runtime", "per_second"))}
        assert {k: one[k] for k in same} == pytest.approx({k: other[k] for k in same}, rel=1e-4, abs=1e-6)


def test_an_order_that_numbers_do_not_tell(capsys: pytest.CaptureFixture[str]) -> None:
    save("student", 0, NAMES)
    save("teacher", 1, NAMES[::-1])
    write([0, 1, 2, 0])
    for command in ("distill", "evaluate", "doctor"):
        assert run(command) == 1
        said = capsys.readouterr()
        assert "the data has numbers alone: write the labels as names" in " ".join(
            (said.out + said.err).split()
        )


def test_a_teacher_of_other_classes(capsys: pytest.CaptureFixture[str]) -> None:
    save("student", 0)
    save("teacher", 1, ["neg", "pos"])
    write(["neg", "pos", "mid", "mid"])
    for command in ("distill", "evaluate", "doctor"):
        assert run(command, class_names=NAMES) == 1
        said = capsys.readouterr()
        assert "the teacher's classes are neg, pos" in " ".join((said.out + said.err).split())


def test_texts_without_labels(capsys: pytest.CaptureFixture[str]) -> None:
    """The student learns what the teacher says of them, and nothing if it needs labels."""
    save("student", 0)
    save("teacher", 1)
    Path("data.jsonl").write_text("".join(json.dumps({"text": f"w{i}"}) + "\n" for i in range(8)))
    assert run("distill", kd_ratio=1.0, logging_steps=1) == 0
    found = report()
    assert found["student"]["eval"]["kd"] > 0 and "ce" not in found["student"]["eval"]
    assert any(entry.get("grad_norm", 0) > 0 for entry in found["student"]["history"])
    for command in ("distill", "doctor"):
        assert run(command, kd_ratio=1.0, control=True, output_dir="other") == 1
        said = capsys.readouterr()
        assert "control: true trains the student on the labels alone" in said.out + said.err
    assert run("distill", output_dir="other") == 0
    assert run("distill", output_dir="another", kd_ratio=0.0) == 1
    assert "train_file has no labels" in capsys.readouterr().err


def test_pairs_of_texts() -> None:
    save("student", 0, ["entailment", "neutral", "contradiction"])
    save("teacher", 1, ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"])
    write(["entailment", "neutral", "contradiction", "neutral"], premise="w", hypothesis="w1")
    assert run("distill") == 0
    assert run("cache", output_dir="cached") == 0
    assert run("distill", teacher="cache:cached", output_dir="from_cache") == 0
    live, stored = (report(f"{name}/report.json")["student"]["eval"]["kd"] for name in ("out", "from_cache"))
    assert stored == pytest.approx(live, rel=1e-2)
