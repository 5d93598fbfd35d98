"""Test the settings that a run on several processes needs, without starting any."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from support.families import bart, bert
from support.tiny import llama
from torch import nn
from transformers.training_args import ParallelMode

from fastkd.corpora.tasks import TASKS
from fastkd.trainer.processes import prepare_processes, unused_parameters

MODELS = {"causal_lm": llama, "seq2seq": bart, "classification": bert}


@pytest.mark.parametrize("task", MODELS)
def test_plain_models_use_all_parameters(task: str) -> None:
    assert unused_parameters(MODELS[task](0), TASKS[task]) == []


def test_an_unused_layer_is_found() -> None:
    model = llama()
    model.spare = nn.Linear(2, 2, bias=False)
    assert unused_parameters(model, TASKS["causal_lm"]) == ["spare.weight"]
    model.spare.requires_grad_(False)
    assert unused_parameters(model, TASKS["causal_lm"]) == []


def test_layers_that_are_left_out_at_random() -> None:
    model = bart(0)
    model.config.decoder_layerdrop = 0.1
    assert unused_parameters(model, TASKS["seq2seq"])


def settings(**fields: Any) -> Any:
    defaults = {
        "world_size": 2,
        "average_tokens_across_devices": True,
        "parallel_mode": ParallelMode.DISTRIBUTED,
        "fsdp": None,
        "deepspeed_plugin": None,
        "ddp_find_unused_parameters": None,
        "ddp_static_graph": None,
        "gradient_checkpointing": False,
        "gradient_checkpointing_kwargs": None,
    }
    return SimpleNamespace(**{**defaults, **fields})


def student(spare: bool = False) -> Any:
    model = llama()
    if spare:
        model.spare = nn.Linear(2, 2, bias=False)
    return SimpleNamespace(student=model, task=TASKS["causal_lm"])


@pytest.mark.parametrize("spare", [False, True])
def test_unused_parameters_are_looked_for_where_there_are_any(spare: bool) -> None:
    args = settings()
    prepare_processes(args, student(spare))
    assert args.ddp_find_unused_parameters is spare


@pytest.mark.parametrize(
    "fields", [{"ddp_find_unused_parameters": True}, {"fsdp": "full_shard"}, {"world_size": 1}]
)
def test_other_settings_are_left_alone(fields: dict[str, Any]) -> None:
    args = settings(**fields)
    prepare_processes(args, student())
    assert args.ddp_find_unused_parameters == fields.get("ddp_find_unused_parameters")


def test_reentrant_checkpointing_needs_all_parameters() -> None:
    fields = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    prepare_processes(settings(**fields), student())
    with pytest.raises(ValueError, match=r"does not reach spare\.weight.*use_reentrant: false"):
        prepare_processes(settings(**fields), student(spare=True))


def test_the_denominator_is_that_of_all_processes(caplog: pytest.LogCaptureFixture) -> None:
    args = settings(average_tokens_across_devices=False)
    with caplog.at_level(logging.WARNING):
        prepare_processes(args, student())
    assert args.average_tokens_across_devices
    assert "average_tokens_across_devices: false is not followed" in caplog.text
