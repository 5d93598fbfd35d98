"""Train a few steps with matches, half of them on-policy; test_on_policy.py runs this also under torchrun."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
import torch
from support.ranks import leave_process_group
from support.sharded import Sharded
from support.tiny import llama, rows
from torch.distributed.tensor import DTensor

from fastkd.trainer import DistillationConfig, DistillationTrainer

WHOLE_BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--saliency", action="store_true")
    parser.add_argument("--fsdp", action="store_true")
    parser.add_argument("--sampling-steps", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    args = DistillationConfig(
        output_dir=str(options.folder),
        max_steps=6,
        per_device_train_batch_size=WHOLE_BATCH // int(os.environ.get("WORLD_SIZE", "1")),
        optim="sgd",
        learning_rate=0.2,
        lr_scheduler_type="constant",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        lmbda=0.6,  # with this seed the first step, before any forward, is on-policy
        seed=3,
        max_completion_length=5,
        sampling_steps=options.sampling_steps,
        sampling_temperature=1e-4,
        feature_matches=[
            {"student": 1, "teacher": 1},
            {"student": 1, "teacher": 1, "kind": "attention"},
            {"student": 1, "teacher": 1, "kind": "relation"},
        ],
        gradient_match_weight=0.5 if options.saliency else 0.0,
    )
    data = [{"input_ids": ids, "labels": [-100, *ids[1:]]} for ids in (row["input_ids"] for row in rows(64))]
    student = llama(0)
    student.generation_config.eos_token_id = list(range(0, 48, 3))  # answers of uneven lengths
    kind = Sharded if options.fsdp else DistillationTrainer
    trainer = kind(student, llama(1, hidden=24), args, train_dataset=data)
    due = [trainer._on_policy.is_due(step) for step in range(6)]
    assert due[0] and False in due
    trainer.train()
    trainer.save_model()
    sharded = any(isinstance(parameter, DTensor) for parameter in trainer.model_wrapped.parameters())
    assert sharded == options.fsdp
    if options.fsdp:
        args.gradient_match_weight = 0.5
        with pytest.raises(ValueError, match="which FSDP does not allow"):
            Sharded(llama(0), llama(1), args, train_dataset=data)


main()
leave_process_group()
