"""Test that ``fastkd doctor`` and ``fastkd distill`` agree: an error of one stops the other, before its
first step.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.doctor import SETTINGS, edit, healthy, place, row, tokenizer, write_rows  # noqa: F401
from support.tiny import llama
from transformers import Trainer

from fastkd.runs.doctor import examine
from fastkd.runs.train import run
from fastkd.trainer import DistillationConfig

Break = Callable[[], dict[str, Any] | None]
RUN = {"max_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True}


def settings(**fields: Any) -> Break:
    return lambda: fields


def rows(count: int = 8, **fields: Any) -> Break:
    return lambda: write_rows("train.jsonl", [{**row(i), **fields} for i in range(count)])


def text(name: str, content: str) -> Break:
    def write() -> None:
        Path(name).write_text(content)

    return write


def weights_of(side: str, **options: Any) -> Break:
    """Another model in a side's directory, with its own weights."""

    def write() -> dict[str, Any]:
        llama(7, **options).save_pretrained(side)
        return {"model_init": "pretrained"} if side == "student" else {}

    return write


def other_tokenizer() -> None:
    words = ["<end>", "<unk>", "<pad>", *(f"w{44 - i}" for i in range(45))]
    tokenizer(words).save_pretrained("teacher")


# Each names a fault, makes it in a healthy folder, and may return fields that the configuration needs for it.
FAULTS: dict[str, Break] = {
    "no teacher to judge samples": settings(lmbda=0.5, teacher=None),
    "samples and packing": settings(lmbda=0.5, packing=True),
    "an engine without samples": settings(sampler="vllm"),
    "an engine that is not installed": settings(sampler="vllm", lmbda=1.0),
    "arguments of no engine": settings(lmbda=1.0, sampler_kwargs={"enforce_eager": True}),
    "a buffer of sampled tokens": settings(lmbda=1.0, objective="sampled", sampling_steps=2),
    "a buffer without samples": settings(sampling_steps=2),
    "an adapter on random weights": settings(peft_config={"r": 2}),
    "base without an adapter": settings(teacher="base"),
    "no learning rate": settings(learning_rate=0.0),
    "no step": settings(max_steps=0),
    "half precision on the CPU": settings(fp16=True),
    "evaluation without data": settings(eval_strategy="steps", eval_steps=1, eval_file=None),
    "unknown service": settings(report_to="tensorbord"),
    "missing student": settings(model="studnet"),
    "missing teacher": settings(teacher="./teachr"),
    "missing data": settings(train_file="nothing.jsonl"),
    "missing cache": settings(teacher="cache:nowhere"),
    "no data": settings(train_file=None),
    "batch larger than the data": settings(dataloader_drop_last=True, per_device_train_batch_size=64),
    "empty file": text("train.jsonl", ""),
    "half a line": text("train.jsonl", json.dumps(row(0)) + '\n{"prompt": "w1'),
    "columns that nobody reads": text("train.jsonl", json.dumps({"a": "w1", "b": "w2"}) + "\n"),
    "blank answers": rows(completion=""),
    "teacher of another vocabulary": weights_of("teacher", vocab=20),
    "teacher with other tokens": other_tokenizer,
}


@pytest.fixture
def whole(place: Path) -> Path:  # noqa: F811
    """The healthy folder, with weights in the teacher's directory."""
    llama(1, hidden=24).save_pretrained("teacher")
    edit("teacher/config.json", pad_token_id=2)
    return place


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each training step that begins."""
    taken: list[int] = []
    step = Trainer.training_step

    def counted(*args: Any, **kwargs: Any) -> Any:
        taken.append(1)
        return step(*args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", counted)
    return taken


def configuration(**fields: Any) -> DistillationConfig:
    return DistillationConfig(**{**SETTINGS, **RUN, **fields})


def errors(**fields: Any) -> list[str]:
    found = examine(configuration(**fields), fast=True)
    return [f"{finding.name}: {finding.found}" for finding in found if finding.severity == "error"]


def test_a_healthy_run_starts(whole: Path, steps: list[int]) -> None:
    assert errors() == []
    run(configuration(), "distill")
    assert steps


@pytest.mark.parametrize("fault", FAULTS)
def test_what_the_doctor_calls_an_error_does_not_start(whole: Path, steps: list[int], fault: str) -> None:
    fields = FAULTS[fault]() or {}
    found = errors(**fields)
    with pytest.raises((ValueError, OSError)):
        run(configuration(**fields), "distill")
    assert not steps
    assert found, "the run is refused, and the doctor finds nothing"
