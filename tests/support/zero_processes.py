"""Train some steps with the DeepSpeed settings on the command line, for test_zero.py."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from datasets import Dataset
from support.ranks import leave_process_group
from support.tiny import rows
from transformers import AutoModelForCausalLM

from fastkd.trainer import DistillationConfig, DistillationTrainer

folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
torch.set_num_threads(1)
args = DistillationConfig(
    output_dir=str(folder / ("two" if settings else "one")),
    deepspeed=settings,
    max_steps=4,
    per_device_train_batch_size=8 // int(os.environ.get("WORLD_SIZE", "1")),
    feature_matches=[{"student": 1, "teacher": 1, "kind": "hidden"}],
    learning_rate=0.1,
    lr_scheduler_type="constant",
    optim="sgd",
    use_cpu=True,
    disable_tqdm=True,
    report_to="none",
    save_strategy="no",
)
student, teacher = (AutoModelForCausalLM.from_pretrained(folder / name) for name in ("student", "teacher"))
trainer = DistillationTrainer(student, teacher, args, train_dataset=Dataset.from_list(rows(32)))
trainer.train()
trainer.save_model()
leave_process_group()
