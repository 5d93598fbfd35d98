"""Test that a run says when it has learned nothing, and only then."""

from __future__ import annotations

import json
import logging
import math
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.doctor import SETTINGS, healthy, place, tokenizer
from support.families import bert

from fastkd.cli import main
from fastkd.runs.chance import Guess, guess, reasons
from fastkd.trainer import DistillationConfig

__all__ = ["healthy", "place"]


def settings(**fields: Any) -> DistillationConfig:
    return DistillationConfig(output_dir="out", use_cpu=True, **fields)


def logs(losses: list[float]) -> list[dict[str, float]]:
    return [{"loss": loss, "step": i + 1} for i, loss in enumerate(losses)]


FALLING = logs([2.0 / (1 + 0.3 * i) for i in range(12)])


def test_guesses_by_hand() -> None:
    single = settings(task="classification", problem_type="single_label_classification")
    found = guess(None, {"labels": [0, 0, 2, -1, -100, 0]}, single)  # a mapping has a length of its own
    assert found is not None and (found.metric, found.value, found.rows) == ("accuracy", 0.75, 4)
    several = settings(task="classification", problem_type="multi_label_classification")
    found = guess(None, {"labels": [[1, 0], [0, 0], [-100, -100]]}, several)
    assert (
        found is not None and found.metric == "ce" and found.value == pytest.approx(math.log(2) / 2, abs=1e-6)
    )
    numbers = settings(task="classification", problem_type="regression")
    found = guess(None, {"labels": [1.0, 3.0, math.nan]}, numbers)
    assert found is not None and (found.metric, found.value) == ("mse", 1.0)


def test_tokens_are_guessed_by_their_frequency() -> None:
    from datasets import Dataset

    train = Dataset.from_list([{"labels": [-100, 5, 5, 5]}, {"labels": [7, 5, -100]}])
    held_out = Dataset.from_list([{"labels": [5, 7, 9]}])
    found = guess(train, held_out, settings())
    expected = -(math.log(4 / 6) + math.log(1 / 6) + math.log(1 / 6)) / 3
    assert found is not None and found.value == pytest.approx(expected)
    assert guess(train, None, settings()) is None
    assert guess(train, iter(()), settings()) is None  # a stream


@pytest.mark.parametrize(
    ("score", "rows", "said"),
    [(0.50, 872, True), (0.525, 872, True), (0.53, 872, False), (0.6, 50, True), (0.63, 50, False)],
)
def test_an_accuracy_within_chance_of_the_most_frequent_class(score: float, rows: int, said: bool) -> None:
    best = Guess("accuracy", 0.5, "the most frequent class", rows)
    found = reasons("student", {"accuracy": score}, FALLING, best, settings())
    assert bool(found) == said
    if said:
        assert f"its accuracy on {rows} held-out rows is {score:.1%}, that of the guess 50.0%" in found[0]


def test_a_cross_entropy_and_scores_that_are_missing() -> None:
    best = Guess("ce", 3.0, "a guess by the frequency of each token", 10)
    assert "cross-entropy" in reasons("student", {"ce": 3.1}, FALLING, best, settings())[0]
    for scores in ({"ce": 2.9}, {}, {"ce": math.nan}):
        assert reasons("student", scores, FALLING, best, settings()) == []


def test_a_loss_that_does_not_fall() -> None:
    """Noise is told from a fall; a run that falls at once and then stays low has learned."""
    noise = random.Random(0)
    flat = logs([2 + noise.gauss(0, 0.1) for _ in range(40)])
    (found,) = reasons("student", {}, flat, None, settings(learning_rate=3e-5))
    assert "did not fall" in found and "3e-05" in found
    assert reasons("student", {}, flat, None, settings(lmbda=0.5)) == []  # the texts change too
    fallen = [10.0, *(2 + noise.gauss(0, 0.1) for _ in range(15))]
    for losses in (
        fallen,
        [2 - 0.02 * i + noise.gauss(0, 0.1) for i in range(40)],
        [2.0] * 7,
        [2.0, math.nan] * 6,
    ):
        assert reasons("student", {}, logs(losses), None, settings()) == []
    assert reasons("student", {}, logs([2.0] * 8), None, settings())


def test_the_drowning_weight_is_the_likely_cause() -> None:
    history = [{**entry, "loss": 51.0, "feature_hidden": 50.0} for entry in FALLING]
    args = settings(feature_matches=[{"student": 1, "teacher": 1, "weight": 25}])
    (found,) = reasons("student", {}, history, None, args)
    assert "feature_matches of kind hidden, weight 25: this loss is 50" in found


def classified(shuffled: bool, **fields: Any) -> dict[str, Any]:
    """The report of a classifier of texts by their first word, in which the labels may be shuffled."""
    for folder, name, count in (("train.jsonl", "w", 64), ("eval.jsonl", "w", 40)):
        rows = [
            {"text": f"{name}{i % 4 + 1} w9 {name}{10 + i % 7}", "label": "ab"[i % 4 // 2]}
            for i in range(count)
        ]
        labels = [row["label"] for row in rows]
        if shuffled:
            random.Random(count).shuffle(labels)
        written = [{**row, "label": label} for row, label in zip(rows, labels, strict=True)]
        Path(folder).write_text("".join(json.dumps(row) + "\n" for row in written))
    model = bert(0, layers=1)
    model.config.id2label, model.config.label2id = {0: "a", 1: "b"}, {"a": 0, "b": 1}
    model.config.num_labels = 2
    model.config.save_pretrained("student")
    tokenizer().save_pretrained("student")
    given = {
        "task": "classification", "model": "student", "model_init": "scratch", "train_file": "train.jsonl",
        "eval_file": "eval.jsonl", "output_dir": "out", "num_train_epochs": 4, "learning_rate": 1e-2,
        "per_device_train_batch_size": 8, "logging_steps": 2, "eval_strategy": "steps", "eval_steps": 12,
        "use_cpu": True, "disable_tqdm": True, "report_to": "none", "save_strategy": "no",
    }  # fmt: skip
    Path("run.yaml").write_text(yaml.safe_dump({**given, **fields}))
    assert main(["train", "run.yaml"]) == 0
    found: dict[str, Any] = json.loads(Path("out/report.json").read_text())
    return found


def test_shuffled_labels_are_said_once_during_the_run_and_at_its_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.WARNING, "fastkd"):
        report = classified(shuffled=True)
    (said,) = report["warnings"]
    assert "the model is no better than the most frequent class" in said and "labels" in said
    assert [record.getMessage()[:15] for record in caplog.records if "no better" in record.getMessage()] == [
        "at step 12 of 3"
    ]
    assert f"warning: {said}" in capsys.readouterr().out
    page = Path("out/report.html").read_text()
    assert "no better than the most frequent class" in page and "<h2>Warnings</h2>" in page


def test_a_run_that_learns_is_not_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = classified(shuffled=False)
    assert report["warnings"] == [] and report["model"]["eval"]["accuracy"] > 0.9
    assert "<h2>Warnings</h2>" not in Path("out/report.html").read_text()


def test_a_learning_rate_that_changes_nothing(place: Path) -> None:
    """Both the student and its control are said to have learned nothing."""
    given = {**SETTINGS, "learning_rate": 1e-12, "max_steps": 16, "logging_steps": 1, "control": True}
    given |= {"disable_tqdm": True, "report_to": "none", "save_strategy": "no"}
    Path("run.yaml").write_text(yaml.safe_dump(given))
    assert main(["distill", "run.yaml"]) == 0
    found = json.loads(Path("out/report.json").read_text())["warnings"]
    for name in ("student", "control"):
        assert any(f"the {name} is no better than a guess by the frequency" in one for one in found)
        assert any(f"the {name}'s training loss did not fall" in one and "1e-12" in one for one in found)
