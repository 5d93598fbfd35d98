"""Train two steps on texts some of which have no label; test_unlabelled.py runs this on two processes too."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from support.mixed_labels import mixed, model
from support.ranks import leave_process_group

from fastkd.corpora.labels import SINGLE_LABEL
from fastkd.trainer import DistillationConfig, DistillationTrainer


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    args = DistillationConfig(
        output_dir=str(folder),
        task="classification",
        max_steps=2,
        per_device_train_batch_size=12 // processes,
        per_device_eval_batch_size=4,
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=0.0,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    data = mixed(SINGLE_LABEL)
    sides = model(0, SINGLE_LABEL), model(1, SINGLE_LABEL)
    trainer = DistillationTrainer(*sides, args, train_dataset=data, eval_dataset=data)
    trainer.train()
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        weights = trainer.student.classifier.weight.detach().flatten().tolist()  # type: ignore[union-attr]
        names = ("eval_loss", "eval_kd", "eval_ce", "eval_accuracy", "eval_agreement")
        folder.mkdir(exist_ok=True)
        found = {"eval": {name: metrics[name] for name in names}, "weights": weights}
        (folder / "found.json").write_text(json.dumps(found))


main()
leave_process_group()
