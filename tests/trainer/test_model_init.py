"""Test that ``model_init`` and a hyperparameter search train students with their teacher."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from support.tiny import llama, rows
from transformers.trainer_utils import HPSearchBackend

from fastkd.trainer import DistillationTrainer
from fastkd.trainer.student import DistilledStudent


def trainer_of(args: Any, **more: Any) -> DistillationTrainer:
    fixed: dict[str, Any] = {
        "model": None,
        "teacher": llama(1),
        "model_init": lambda: llama(),
        "train_dataset": Dataset.from_list(rows(8)),
        "eval_dataset": Dataset.from_list(rows(4, 1)),
    }
    return DistillationTrainer(args=args, **{**fixed, **more})


def weights(trainer: DistillationTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.student.parameters()])


def test_every_training_begins_with_a_new_student(configuration: Any) -> None:
    trainer = trainer_of(configuration(max_steps=2))
    trainer.train()
    first = weights(trainer)
    trainer.train()
    assert isinstance(trainer.model, DistilledStudent)
    assert torch.equal(weights(trainer), first)
    assert all("kd" in entry for entry in trainer.state.log_history if "loss" in entry)


def test_a_model_given_as_well_is_what_is_there_before_training(configuration: Any) -> None:
    trainer = trainer_of(configuration(max_steps=1, learning_rate=0.0), model=llama(5))
    assert torch.equal(weights(trainer), torch.cat([p.flatten() for p in llama(5).parameters()]))
    trainer.train()
    assert torch.equal(weights(trainer), torch.cat([p.flatten() for p in llama().parameters()]))


def test_neither_is_refused(configuration: Any) -> None:
    with pytest.raises(ValueError, match="give the student as model"):
        trainer_of(configuration(), model_init=None)
    optimizer = torch.optim.SGD(llama().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="optimizers"):
        trainer_of(configuration(), optimizers=(optimizer, None))


def test_a_trial_chooses_fields_of_the_loss(configuration: Any) -> None:
    """The student is made before the trial has set the fields, so it is made again."""
    trainer = trainer_of(configuration(kd_ratio=0.5))
    trainer.hp_search_backend = HPSearchBackend.OPTUNA
    trainer.hp_space = lambda trial: {"kd_ratio": 1.0, "temperature": 4.0, "lmbda": 0.5}
    trainer._hp_search_setup(SimpleNamespace(params={}, number=0))
    assert trainer.model is trainer.model_wrapped
    assert (trainer.model.options["kd_ratio"], trainer.model.options["temperature"]) == (1.0, 4.0)
    assert trainer._on_policy is not None


def test_the_base_of_each_student_is_its_teacher(configuration: Any) -> None:
    from peft import LoraConfig, get_peft_model

    from fastkd.corpora.tasks import TASKS
    from fastkd.trainer.teachers import BaseTeacher

    def init() -> Any:
        return get_peft_model(llama(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))

    first = init()
    teacher = BaseTeacher(first, TASKS["causal_lm"], fused=True)
    trainer = trainer_of(configuration(max_steps=1), model=first, teacher=teacher, model_init=init)
    trainer.train()
    assert trainer.student is not first
    assert trainer.model.teacher.model is trainer.student


@pytest.mark.parametrize("more", [{}, {"compute_metrics": lambda prediction: {"mine": 7.0}}])
def test_the_objective_is_the_loss_or_the_callers_metrics(more: dict[str, Any], configuration: Any) -> None:
    """The sum of fastkd's own metrics, which transformers would take, means nothing."""
    trainer = trainer_of(configuration(), **more)
    metrics = trainer.evaluate()
    assert len(metrics) > 5
    assert trainer._objective(metrics) == (7.0 if more else metrics["eval_loss"])


def test_a_search(configuration: Any) -> None:
    pytest.importorskip("optuna")
    trainer = trainer_of(configuration(max_steps=1))
    rates = []

    def space(trial: Any) -> dict[str, float]:
        rates.append(trial.suggest_float("learning_rate", 1e-4, 1e-2))
        return {"learning_rate": rates[-1]}

    best = trainer.hyperparameter_search(space, backend="optuna", n_trials=2, direction="minimize")
    assert best.hyperparameters["learning_rate"] in rates
    assert best.objective < 10
    assert isinstance(trainer.model, DistilledStudent)
