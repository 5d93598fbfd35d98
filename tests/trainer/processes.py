"""Run by test_distributed.py, under torchrun and without: trains a few steps and writes what came out."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from tiny import llama, rows

from fastkd.trainer import DistillationConfig, DistillationTrainer


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    args = DistillationConfig(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=4 // processes,
        per_device_eval_batch_size=4 // processes,
        optim="sgd",
        learning_rate=0.5,
        lr_scheduler_type="constant",
        save_strategy="no",
        logging_steps=1,
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = DistillationTrainer(
        llama(0), llama(1), args, train_dataset=rows(32), eval_dataset=rows(8, seed=3)
    )
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        found = {
            "logs": [
                {k: e[k] for k in ("loss", "kd", "ce")} for e in trainer.state.log_history if "loss" in e
            ],
            "eval": {k: metrics[f"eval_{k}"] for k in ("loss", "kd", "ce", "agreement")},
        }
        (folder / "found.json").write_text(json.dumps(found))


main(Path(sys.argv[1]))
