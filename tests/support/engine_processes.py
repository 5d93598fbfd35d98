"""Trains on two processes, each with an engine of its own, and saves the weights; torchrun starts it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from support.on_policy import GREEDY, prompted, weights
from support.ranks import leave_process_group
from support.tiny import llama

from fastkd.trainer import DistillationConfig, DistillationTrainer


def main(folder: Path) -> None:
    for name, sampler in (("plain", "transformers"), ("one", "vllm"), ("two", "vllm")):
        args = DistillationConfig(
            output_dir=str(folder / name),
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
            report_to="none",
            learning_rate=1e-2,
            per_device_train_batch_size=4,
            max_steps=4,
            lmbda=1.0,
            sampling_temperature=GREEDY,
            sampling_steps=2,
            max_length=24,
            max_completion_length=8,
            sampler=sampler,
            sampler_kwargs={"enforce_eager": True, "kv_cache_memory_bytes": 1 << 26}
            if sampler == "vllm"
            else None,
        )
        student, teacher = (llama(seed, hidden=64, positions=128, layers=2) for seed in (0, 1))
        trainer = DistillationTrainer(student, teacher, args, train_dataset=prompted(64))
        trainer.train()
        torch.save(weights(trainer), folder / f"{name}-{args.process_index}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave_process_group()
