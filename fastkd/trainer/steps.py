"""Finds runs that would make no optimizer step, and so would save the student as it came."""

from __future__ import annotations

from transformers import TrainingArguments


def no_step(args: TrainingArguments, rows: int | None = None) -> tuple[str, str] | None:
    """The reason why a run makes no step, and its remedy; None if it makes at least one.

    Args:
        rows: number of training rows; None where it is not known.
    """
    if args.max_steps == 0:
        return "max_steps: 0 makes no step", "set a number of steps, or leave it out to count epochs"
    if args.max_steps < 0 and args.num_train_epochs == 0:
        return "num_train_epochs: 0 makes no step", "set it above 0, or set max_steps"
    if rows == 0:
        return "the training data has no rows, so a run makes no step", "give data with rows"
    batch = args.per_device_train_batch_size * args.world_size
    if rows is not None and args.dataloader_drop_last and rows < batch:
        return (
            f"dataloader_drop_last: true leaves no batch, for a batch has {batch:,} rows and the training "
            f"data {rows:,}",
            "lower per_device_train_batch_size, or set dataloader_drop_last: false",
        )
    return None
