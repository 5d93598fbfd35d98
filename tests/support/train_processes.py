"""Train some steps and write the results. test_distributed.py runs this with and without torchrun."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

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
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--fused", default="true")
    parser.add_argument("--fsdp", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--save-steps", type=int)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    saving: dict[str, Any] = {"save_strategy": "no"}
    if options.save_steps:
        saving = {"save_strategy": "steps", "save_steps": options.save_steps}
    args = DistillationConfig(
        output_dir=str(options.folder),
        max_steps=options.steps,
        per_device_train_batch_size=WHOLE_BATCH // processes // options.accumulation,
        per_device_eval_batch_size=WHOLE_BATCH // processes,
        gradient_accumulation_steps=options.accumulation,
        gradient_checkpointing=options.checkpointing,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        logging_steps=1,
        fused_head=options.fused,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        **saving,
    )
    trainer = (Sharded if options.fsdp else DistillationTrainer)(
        llama(0),
        llama(1),
        args,
        train_dataset=rows(64),
        eval_dataset=rows(8, seed=3),
        optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    )
    trainer.train(resume_from_checkpoint=True if options.resume else None)
    metrics = trainer.evaluate()
    trainer.save_model()
    sharded = any(isinstance(parameter, DTensor) for parameter in trainer.model_wrapped.parameters())
    assert sharded == options.fsdp
    if trainer.is_world_process_zero():
        logged = ("loss", "kd", "ce", "grad_norm")
        found = {
            "logs": [{k: e[k] for k in logged} for e in trainer.state.log_history if "loss" in e],
            "eval": {k: metrics[f"eval_{k}"] for k in ("loss", "kd", "ce", "agreement")},
        }
        (options.folder / "found.json").write_text(json.dumps(found))


main()
leave_process_group()
