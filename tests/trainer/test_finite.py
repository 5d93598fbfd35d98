"""Test that weights which are not finite are an error, and that NaN is never reported as a number."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from support.tiny import llama, rows

from fastkd.errors import Diverged
from fastkd.runs import report
from fastkd.trainer import DistillationTrainer
from fastkd.trainer.objective import means

Make = Callable[..., Any]
WILD = {"optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant", "save_strategy": "steps"}


def trainer(args: Any, student: Any, **kwargs: Any) -> DistillationTrainer:
    return DistillationTrainer(student, llama(1), args, train_dataset=Dataset.from_list(rows(16)), **kwargs)


def spoil_after(step: int, student: Any) -> Any:
    """A hook that makes a weight NaN in the update after ``step`` steps."""
    passed = 0

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        nonlocal passed
        passed += 1
        return gradient if passed <= step else torch.full_like(gradient, math.nan)

    return next(student.parameters()).register_hook(spoil)


def test_weights_that_diverge_are_not_saved(configuration: Make) -> None:
    student = llama()
    spoil_after(2, student)
    run = trainer(configuration(**WILD, save_steps=1, max_steps=6, logging_steps=50), student)
    with pytest.raises(Diverged, match="not finite numbers after step 3: the run diverged"):
        run.train()
    saved = sorted(path.name for path in Path(run.args.output_dir).glob("checkpoint-*"))
    assert saved == ["checkpoint-1", "checkpoint-2"]


def test_a_run_stops_where_it_is_logged(configuration: Make) -> None:
    student = llama()
    spoil_after(1, student)
    run = trainer(configuration(**{**WILD, "save_strategy": "no"}, max_steps=20, logging_steps=4), student)
    with pytest.raises(Diverged, match="after step 4"):
        run.train()


def test_the_last_update_counts_too(configuration: Make) -> None:
    """No loss is computed after it."""
    student = llama()
    spoil_after(3, student)
    run = trainer(configuration(**{**WILD, "save_strategy": "no"}, max_steps=4, logging_steps=50), student)
    with pytest.raises(Diverged, match="after step 4"):
        run.train()


def test_a_single_loss_that_is_not_finite(configuration: Make, caplog: pytest.LogCaptureFixture) -> None:
    """The weights may survive it, as they do where a gradient scaler leaves a step out."""
    student = llama()
    run = trainer(configuration(max_steps=4, logging_steps=1), student)
    run._finite.saw(torch.tensor(math.inf))
    run.train()
    assert caplog.text.count("was not a finite number; the weights still are") == 1


@pytest.mark.parametrize("fused_head", ["auto", "false"])
def test_an_evaluation_without_labels(
    fused_head: str, configuration: Make, caplog: pytest.LogCaptureFixture
) -> None:
    masked = [{**row, "labels": [-100] * len(row["input_ids"])} for row in rows(8)]
    run = trainer(configuration(fused_head=fused_head), llama(), eval_dataset=Dataset.from_list(masked))
    found = run.evaluate()
    for name in ("loss", "kd", "ce", "perplexity", "agreement", "teacher_perplexity"):
        assert math.isnan(found[f"eval_{name}"]), name
    assert "have no label" in caplog.text
    assert "nan" in report.table({"student": {"perplexity": found["eval_perplexity"]}})


def test_nan_is_no_infinity() -> None:
    assert math.isnan(means({"tokens": 2.0, "ce": math.nan})["perplexity"])
    assert means({"tokens": 1.0, "ce": 1000.0})["perplexity"] == math.inf


def test_sentences_about_numbers_that_are_none() -> None:
    found: dict[str, Any] = {"student": {"steps": 1, "eval": {"perplexity": math.nan}}}
    assert "is not a number" in report.verdict(found)
    classified: dict[str, Any] = {"student": {"steps": 1, "eval": {"accuracy": math.nan}}}
    assert "is not a number" in report.verdict(classified)
    found["student"]["eval"]["perplexity"] = 3.0
    for control in (math.nan, math.inf):
        found["control"] = {"steps": 1, "eval": {"perplexity": control}}
        assert report.verdict(found) == "The student's perplexity on held-out data is 3.00."
