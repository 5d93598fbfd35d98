"""Test several teachers, of which each row has one or which are mixed, against kd_loss row by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from support import stored
from support.served import Stub, serving
from support.stored import settings
from support.tiny import llama

import fastkd
from fastkd.cli import main
from fastkd.corpora.tasks import TASKS
from fastkd.runs.doctor import examine
from fastkd.runs.estimate import estimate
from fastkd.trainer import DistillationTrainer
from fastkd.trainer.loading import settings_of_each
from fastkd.trainer.teachers import LiveTeacher, MixedTeachers, RoutedTeachers
from fastkd.trainer.teachers.several import NUMBERS

NAMES = ("math", "chat", "code")
DATA = [
    {"prompt": "abc"[: 1 + i % 3], "completion": "defgh"[i % 4 :], "teacher": NAMES[i % 2]} for i in range(16)
]


def models() -> dict[str, Any]:
    return {name: llama(seed, hidden=24) for seed, name in enumerate(NAMES, 1)}


def trainer_of(tmp_path: Path, teacher: Any, data: Any = DATA, **fields: Any) -> DistillationTrainer:
    args = settings(
        output_dir=str(tmp_path), logging_steps=1, max_length=24, learning_rate=1e-2, seed=3,
        **{"max_steps": 4, "per_device_train_batch_size": 4, "max_completion_length": 4, **fields},
    )  # fmt: skip
    data = Dataset.from_list(data)
    return DistillationTrainer(llama(0), teacher, args, None, data, data, stored.tokenizer())


def batch_of(rows: list[int]) -> dict[str, Any]:
    """A batch in which the rows have teachers with these numbers."""
    made = dict(
        TASKS["causal_lm"].collate(
            [{"input_ids": [3, 4 + i, 5, 9, 8][: 5 - i % 2], "labels": [-100, 4 + i, 5, 9, 8][: 5 - i % 2]}
             for i in range(len(rows))], 0,
        )
    )  # fmt: skip
    return {**made, NUMBERS: torch.tensor(rows)}


@pytest.mark.parametrize("fused_head", ["auto", "false"])
@pytest.mark.parametrize("rows", [[0, 1, 0, 2], [2, 2, 2, 2]])
def test_each_row_has_the_loss_of_its_teacher(tmp_path: Path, rows: list[int], fused_head: str) -> None:
    teachers = models()
    options = {"divergence": "jsd", "beta": 0.3, "temperature": 2.0, "fused_head": fused_head}
    trainer = trainer_of(tmp_path, teachers, **options)
    batch = batch_of(rows)
    found = trainer.model.train()(**batch, with_sums=True, num_items_in_batch=20)
    found["loss"].backward()
    ours = [p.grad.clone() for p in trainer.student.parameters()]

    student, total = llama(0), 0.0
    for i, number in enumerate(rows):
        inputs = {name: batch[name][i : i + 1] for name in ("input_ids", "attention_mask")}
        logits = student(**inputs).logits[:, :-1]
        with torch.no_grad():
            given = teachers[NAMES[number]](**inputs).logits[:, :-1]
        total = total + fastkd.kd_loss(
            logits, given, batch["labels"][i : i + 1, 1:], kd_ratio=0.5, divergence="jsd", beta=0.3,
            temperature=2.0, reduction="sum",
        )  # fmt: skip
    (total / 20).backward()
    assert float(found["loss"]) == pytest.approx(float(total) / 20, rel=1e-5)
    for own, other in zip(ours, student.parameters(), strict=True):
        torch.testing.assert_close(own, other.grad, rtol=1e-4, atol=1e-6)
    assert float(found["sums"]["loss"]) == pytest.approx(float(total), rel=1e-4)
    evaluated = trainer.model.eval()(**batch)
    assert float(evaluated["sums"]["kd"]) == pytest.approx(float(found["sums"]["kd"]), rel=1e-4)


def test_a_mixture_has_the_mean_of_the_probabilities() -> None:
    teachers, task = models(), TASKS["causal_lm"]
    weights = {"math": 1.0, "chat": 3.0, "code": 0.0}
    batch = batch_of([0, 0])
    for fused in (True, False):
        mixed = MixedTeachers(
            {name: LiveTeacher(model, task, fused) for name, model in teachers.items()}, weights
        )
        found = mixed(batch).distribution
        assert isinstance(found, torch.Tensor)
        with torch.no_grad():
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            sides = [teachers[name](**inputs).logits.softmax(-1) for name in ("math", "chat")]
        torch.testing.assert_close(found.exp(), sides[0] / 4 + 3 * sides[1] / 4, rtol=1e-4, atol=1e-6)


def losses(trainer: DistillationTrainer) -> list[float]:
    trainer.train()
    return [one["loss"] for one in trainer.state.log_history if "loss" in one]


def test_runs_of_equal_teachers_are_those_of_one(tmp_path: Path) -> None:
    """The same model under every name is the same teacher, routed or mixed, on data and on samples."""
    model = llama(1, hidden=24)
    for fields in ({}, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}, {"lmbda": 1.0}):
        one = losses(trainer_of(tmp_path / "one", model, **fields))
        routed = losses(trainer_of(tmp_path / "routed", {"math": model, "chat": model}, **fields))
        assert routed == pytest.approx(one, abs=2e-5)
    task = TASKS["causal_lm"]
    sides = {name: LiveTeacher(model, task, True) for name in NAMES}
    mixed = losses(trainer_of(tmp_path / "mixed", MixedTeachers(sides, dict.fromkeys(NAMES, 2.0))))
    assert mixed == pytest.approx(losses(trainer_of(tmp_path / "one", model)), abs=2e-5)


def test_samples_keep_the_teacher_of_their_prompt(tmp_path: Path) -> None:
    data = [{**row, "prompt": "mc"[i % 2] + row["prompt"]} for i, row in enumerate(DATA)]
    trainer = trainer_of(tmp_path, models(), data, lmbda=1.0)
    routed = trainer._teacher
    assert isinstance(routed, RoutedTeachers)
    seen: list[tuple[int, int]] = []
    parts = routed.parts

    def watched(batch: Any) -> Any:
        seen.extend(zip(batch["input_ids"][:, 0].tolist(), batch[NUMBERS].tolist(), strict=True))
        return parts(batch)

    routed.parts = watched  # type: ignore[method-assign]
    trainer.train()
    first = {letter: stored.tokenizer()(letter)["input_ids"][0] for letter in "mc"}
    assert len(seen) >= 16 and set(seen) == {(first["m"], 0), (first["c"], 1)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teachers": {"a": "x"}}, "fewer than two"),
        ({"teachers": {"a": "x", "b": "y"}, "teacher": "z"}, "both set"),
        ({"teachers": {"a": "x", "b": "y"}, "task": "classification"}, "not for classification"),
        ({"teachers": {"a": "x", "b": "y"}, "packing": True}, "packing: false"),
        ({"teacher_weights": {"a": 1}}, "set teachers"),
        ({"teachers": {"a": "x", "b": "y"}, "teacher_weights": {"a": 1}}, "they must agree"),
        ({"teachers": {"a": "x", "b": "y"}, "teacher_weights": {"a": 0, "b": 0}}, "not all of them 0"),
        ({"teachers": {"a": "x", "b": "y"}, "teacher_weights": {"a": -1, "b": 2}}, "numbers from 0"),
    ],
)
def test_refused_settings(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**fields)


def test_rows_that_name_no_teacher(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="row 2 names the teacher 'nobody', and there are math, chat, code"):
        trainer_of(tmp_path, models(), [DATA[0], {**DATA[1], "teacher": "nobody"}])
    plain = [{name: text for name, text in row.items() if name != "teacher"} for row in DATA]
    with pytest.raises(ValueError, match="has no column teacher, which names the teacher of each row"):
        trainer_of(tmp_path, models(), plain)
    trainer = trainer_of(tmp_path, models())
    batch = batch_of([0])
    del batch[NUMBERS]
    with pytest.raises(ValueError, match="does not say which row has which"):
        trainer.model.train()(**batch)


def test_a_model_and_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command line, with one teacher here and one behind a URL; and what it refuses."""
    pytest.importorskip("httpx")
    given = stored.workplace(tmp_path, 8)
    (tmp_path / "data.jsonl").write_text(
        "".join(json.dumps({**row, "kind": row["teacher"]}) + "\n" for row in DATA)
    )
    with serving(Stub(llama(2, hidden=24), stored.tokenizer())) as stub:
        teachers = {"math": given.pop("teacher"), "chat": stub.url}
        fields = {
            "teachers": teachers,
            "teacher_top_k": 6,
            "max_steps": 3,
            "eval_answers": 2,
            "control": True,
        }
        config = tmp_path / "run.yaml"
        more = {"eval_file": given["train_file"], "save_steps": 1}
        config.write_text(json.dumps({**given, **fields, **more}))
        assert main(["distill", str(config), "--output-dir", str(tmp_path / "out")]) == 0
        found = json.loads((tmp_path / "out" / "report.json").read_text())
        assert found["student"]["eval"]["kd"] > 0 and found["control"]["eval"]["kd"] > 0
        assert len(stub.prompts) > 10
        # By another column, and mixed, which a server cannot be.
        column = ["--teacher-column", "kind", "--output-dir", str(tmp_path / "column")]
        assert main(["distill", str(config), *column]) == 0
        mixed = ["--teacher-weights", '{"math": 1, "chat": 1}', "--output-dir", str(tmp_path / "mixed")]
        assert main(["distill", str(config), *mixed]) == 1
        assert "knows only its likeliest tokens" in capsys.readouterr().err
    for command in ("cache", "generate"):
        assert main([command, str(config), "--output-dir", str(tmp_path / command)]) == 1


def test_the_doctor_and_the_estimate_take_each_teacher(tmp_path: Path) -> None:
    given = stored.workplace(tmp_path, 8)
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in DATA))
    llama(2, hidden=48).save_pretrained(tmp_path / "wide")
    stored.tokenizer(letters=stored.LETTERS[::-1]).save_pretrained(tmp_path / "wide")
    teachers = {"math": given.pop("teacher"), "chat": str(tmp_path / "wide")}
    args = settings(**given, teachers=teachers)
    found = [one for one in examine(args) if one.severity == "error"]
    assert found and all(one.found.startswith("teacher chat: ") for one in found)
    assert not any("nobody reads" in one.found for one in examine(args))
    stored.tokenizer().save_pretrained(tmp_path / "wide")
    both = estimate(args, timed=False).step
    each = [estimate(one, timed=False).step for _, one in settings_of_each(args)]
    assert both.peak > max(step.peak for step in each)
