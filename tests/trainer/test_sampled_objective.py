"""Test the objective on the student's own tokens against log-softmax on whole logits."""

from __future__ import annotations

import dataclasses
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
from fastkd.corpora.tasks import TASKS
from fastkd.losses.sampled import ESTIMATORS
from fastkd.trainer import DistillationConfig, DistillationTrainer, config
from fastkd.trainer.models import ModelOutput

PROMPTS = [{"prompt": "abc", "completion": "d"}, {"prompt": "hello w", "completion": "you"}] * 4


def trainer_of(tmp_path: Path, teacher: Any, student: Any = None, **fields: Any) -> DistillationTrainer:
    args = settings(
        output_dir=str(tmp_path), lmbda=1.0, objective="sampled", logging_steps=1, max_completion_length=5,
        learning_rate=1e-2, max_length=24, **{"max_steps": 4, **fields},
    )  # fmt: skip
    data = Dataset.from_list(PROMPTS)
    return DistillationTrainer(student or llama(0), teacher, args, None, data, None, stored.tokenizer())


def batch() -> dict[str, Any]:
    rows = [
        {"input_ids": [3, 4, 5, 9, 8], "labels": [-100, -100, 5, 9, 8]},
        {"input_ids": [7, 6, 11], "labels": [-100, 6, 11]},
    ]
    return dict(TASKS["causal_lm"].collate(rows, 0))


@pytest.mark.parametrize("fused_head", ["auto", "false"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_loss_of_a_batch(tmp_path: Path, estimator: str, fused_head: str) -> None:
    teacher = llama(1, hidden=24)
    trainer = trainer_of(tmp_path, teacher, sampled_estimator=estimator, fused_head=fused_head)
    found = trainer.model.train()(**batch(), own_samples=True, with_sums=True, num_items_in_batch=10)
    found["loss"].backward()
    ours = [p.grad.clone() for p in trainer.student.parameters() if p.grad is not None]

    student, given = llama(0), batch()
    logs = []
    for model in (student, teacher):
        logits = model(given["input_ids"], attention_mask=given["attention_mask"]).logits[:, :-1].double()
        labels = given["labels"][:, 1:]
        logs.append(logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0][labels >= 0])
    a = logs[0] - logs[1].detach()
    wanted = {
        "k1": a.detach() * logs[0],
        "k2": a.square() / 2,
        "k3": torch.exp(-a) - 1 + a,
    }[estimator]
    (wanted.sum() / 10).backward()
    theirs = [p.grad for p in student.parameters() if p.grad is not None]
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)
    value = a.detach() if estimator == "k1" else wanted.detach()
    assert float(found["loss"]) == pytest.approx(float(value.sum()) / 10, rel=1e-5)
    sums = found["sums"]
    assert sums["tokens"] == 5 and float(sums["kd"]) == pytest.approx(float(a.sum()), rel=1e-4)
    assert float(sums["ce"]) == pytest.approx(-float(logs[0].sum()), rel=1e-5)


def test_a_student_becomes_more_like_its_teacher(tmp_path: Path) -> None:
    teacher, student = llama(1, hidden=24), llama(0)
    trainer = trainer_of(tmp_path, teacher, student, max_steps=60, per_device_train_batch_size=8)
    trainer.train()
    log = [one for one in trainer.state.log_history if "kd" in one]
    first, last = (sum(one["kd"] for one in part) / 10 for part in (log[:10], log[-10:]))
    assert last < 0.8 * first


def test_a_served_teacher_is_asked_for_the_tokens_alone(tmp_path: Path) -> None:
    pytest.importorskip("httpx")
    teacher = llama(1, hidden=24)
    live = trainer_of(tmp_path / "live", teacher)
    live.train()
    with serving(Stub(teacher, stored.tokenizer())) as stub:
        served = trainer_of(tmp_path / "served", stub.url)
        served.train()
    ours, theirs = (
        [one["loss"] for one in made.state.log_history if "loss" in one] for made in (served, live)
    )
    assert len(ours) == 4 and ours == pytest.approx(theirs, abs=1e-5)


class LikeliestTokens:
    """A teacher that does not know every token."""

    live, columns = True, 48

    def to(self, device: torch.device) -> None: ...

    def __call__(self, given: Any, *_: Any) -> ModelOutput:
        shape = (*given["labels"].shape, 2)
        indices = torch.arange(2).expand(shape).contiguous()
        return ModelOutput(fastkd.SparseTeacher(indices, torch.full(shape, -1.0), "bucket"))


def test_a_teacher_of_likeliest_tokens_is_refused(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, LikeliestTokens())
    with pytest.raises(ValueError, match="knows the probability of every token"):
        trainer.model.train()(**batch(), own_samples=True)


def test_the_settings_name_the_estimators() -> None:
    assert config.ESTIMATORS == ESTIMATORS
    default = {field.name: field.default for field in dataclasses.fields(DistillationConfig)}
    assert default["objective"] == "full" and default["sampled_estimator"] == "k1"
    for wrong in ({"objective": "some"}, {"sampled_estimator": "k9"}, {"sampled_advantage_clip": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            settings(**wrong)
