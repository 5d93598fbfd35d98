"""Test the commands with a teacher that has another tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support import crossed
from support.crossed import ROWS, STUDENT
from support.vocabularies import tokenizer

from fastkd.cli import main
from fastkd.runs.estimate import Shape, run_step
from fastkd.trainer import DistillationConfig

SETTINGS: dict[str, Any] = {
    "model": "student", "teacher": "teacher", "cross_tokenizer": "spans", "temperature": 10.0,
    "train_file": "rows.jsonl", "eval_file": "rows.jsonl", "max_length": 64, "max_steps": 2,
    "per_device_train_batch_size": 4, "max_completion_length": 6, "eval_answers": 3, "save_strategy": "no",
    "output_dir": "out", "use_cpu": True, "disable_tqdm": True, "report_to": "none",
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crossed")
    crossed.teacher(folder / "teacher")
    crossed.student().save_pretrained(folder / "student")
    tokenizer(STUDENT).save_pretrained(folder / "student")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "run.yaml").write_text(yaml.safe_dump(SETTINGS))
    return folder


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def test_distill_and_evaluate(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "run.yaml", "--control"]) == 0, capsys.readouterr().err
    report = json.loads(Path("out/report.json").read_text())
    student, teacher, control = (report[name] for name in ("student", "teacher", "control"))
    assert student["eval"]["aligned"] == 1 and "agreement" not in student["eval"]
    assert control["eval"]["teacher_ce"] == student["eval"]["teacher_ce"] == teacher["eval"]["ce"]
    # Each model has answered in its own tokens.
    assert {*report["samples"][0]["answers"]} == {"student", "control", "teacher"}
    assert len(report["samples"]) == 3 and teacher["greedy"]["num_beams"] == 1
    assert main(["evaluate", "run.yaml", "--model", "out", "--num-beams", "1"]) == 0, capsys.readouterr().err
    again = json.loads(Path("out/evaluate.json").read_text())
    assert again["student"]["eval"]["kd"] == pytest.approx(student["eval"]["kd"], rel=1e-5)
    assert again["teacher"]["greedy"]["mean_length"] == teacher["greedy"]["mean_length"]


def test_a_run_with_gold_and_its_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["run.yaml", "--cross_tokenizer", "gold", "--temperature", "1", "--output-dir", "gold"]
    assert main(["distill", *given, "--lmbda", "0.5"]) == 0, capsys.readouterr().err
    report = json.loads(Path("gold/report.json").read_text())
    assert main(["evaluate", *given, "--model", "gold"]) == 0, capsys.readouterr().err
    again = json.loads(Path("gold/evaluate.json").read_text())
    assert again["student"]["eval"]["kd"] == pytest.approx(report["student"]["eval"]["kd"], rel=1e-5) != 0


def test_a_teacher_that_is_not_asked_for_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    settings = {name: value for name, value in SETTINGS.items() if name != "cross_tokenizer"}
    crossed.teacher(Path("other"), kind="metaspace")
    Path("plain.yaml").write_text(yaml.safe_dump({**settings, "teacher": "other", "output_dir": "no"}))
    assert main(["distill", "plain.yaml"]) != 0
    said = capsys.readouterr().err
    assert "token numbers mean another token" in said and "set cross_tokenizer: spans" in said
    assert not Path("no/report.json").exists()


@pytest.mark.parametrize("fields", [{"teacher": "base"}, {"teacher": "cache:dir"}, {"packing": True}])
def test_settings_that_do_not_go_with_it(fields: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    Path("wrong.yaml").write_text(yaml.safe_dump({**SETTINGS, **fields, "output_dir": "no"}))
    assert main(["distill", "wrong.yaml"]) != 0
    assert "cross_tokenizer: spans" in capsys.readouterr().err


def test_a_student_with_a_tokenizer_of_its_own_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        "run.yaml",
        "--architecture",
        "llama",
        "--vocab-size",
        "290",
        "--layers",
        "1",
        "--hidden-size",
        "16",
    ]
    assert main(["new", "fresh", *given]) == 0, capsys.readouterr().err
    assert "290 tokens" in capsys.readouterr().out


@pytest.mark.parametrize("crossing", ["spans", "hybrid", "gold"])
def test_the_estimate_counts_both_sides(crossing: str) -> None:
    args = DistillationConfig(**{**SETTINGS, "cross_tokenizer": crossing})
    short, long = (run_step(args, Shape(4, 40, 0, share)) for share in (0.5, 2.0))
    for step in (short, long):
        assert step.reason is None and torch.isfinite(torch.tensor(float(step.peak)))
    assert long.flops > short.flops


def test_the_estimate_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "run.yaml", "--cross-tokenizer", "hybrid", "--json", "--no-time"]) == 0, (
        capsys.readouterr().err
    )
    found = json.loads(capsys.readouterr().out)
    assert 0.5 < found["train"]["longest"]["share"] < 1
    assert not any("cache:DIR" in str(remedy) for remedy in found["remedies"])
