"""The disk space that a training run needs for its result and its checkpoints."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fastkd.directories import existing
from fastkd.runs.estimate.optimizers import optimizer_bytes
from fastkd.runs.estimate.text import size
from fastkd.trainer.config import DistillationConfig, plain
from fastkd.trainer.seeds import seeds_of


@dataclass(frozen=True)
class Need:
    """The sizes of the files that a run writes.

    Attributes:
        folder: its ``output_dir``.
        weights, state: bytes of the weights, and of the optimizer's state in each checkpoint. An adapter is
            small and counts as nothing.
        checkpoints: the most of them that are on the disk at a time.
        runs: number of runs with a result of their own: a control is one, and so is each seed.
        free: bytes that are free for the run, with those of the checkpoints and weights that it replaces.
    """

    folder: Path
    weights: int
    state: int
    checkpoints: int
    runs: int
    free: int

    @property
    def bytes(self) -> int:
        return self.runs * (self.weights + self.checkpoints * (self.weights + self.state))

    @property
    def sentence(self) -> str:
        what = f"the model and {self.checkpoints} checkpoints"
        if self.runs > 1:
            what = f"{self.runs} runs, each with a model and {self.checkpoints} checkpoints,"
        return (
            f"{what} need {size(self.bytes)} of disk space and {size(self.free)} are free at output_dir "
            f"{str(self.folder)!r}"
        )

    @property
    def remedy(self) -> str:
        free = self.free // self.runs
        if free <= 2 * self.weights + self.state:
            return "give another output_dir"
        few = (free - self.weights) // max(self.weights + self.state, 1) - 1
        limit = f"set save_total_limit: {few} or " if few >= 1 else "set "
        return f"{limit}save_only_model: true, or give another output_dir"


def needed(args: DistillationConfig, model: nn.Module, steps: int | None) -> Need:
    """The disk space that a run needs, and the space that is free.

    Args:
        args: its configuration.
        model: its student; without ``peft_config`` all of it is saved, in float32.
        steps: number of optimizer steps; None if it is not known.
    """
    weights = state = 0
    if not args.peft_config:
        weights = 4 * sum(p.numel() for p in model.parameters())
        state = 0 if args.save_only_model else optimizer_bytes(plain(args.optim), None, model.parameters())
    folder = Path(str(args.output_dir))
    runs = len(seeds_of(args.seeds, args.seed)) * (2 if args.control else 1)
    return Need(folder, weights, state, _checkpoints(args, steps), runs, free_disk(folder))


def require(args: DistillationConfig, model: nn.Module, steps: int | None) -> None:
    """Raise a ``ValueError`` if the disk has no room for a run."""
    need = needed(args, model, steps)
    if need.bytes > need.free:
        raise ValueError(f"no space for the run: {need.sentence}: {need.remedy}")


def steps_of(args: DistillationConfig, rows: Any) -> int | None:
    """The number of optimizer steps; None for a stream of unknown length."""
    if args.max_steps > 0:
        return args.max_steps
    try:
        count = len(rows)
    except TypeError:
        return None
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return int(-(-count // batch) * args.num_train_epochs)


def _checkpoints(args: DistillationConfig, steps: int | None) -> int:
    """The largest number of checkpoints on disk: the oldest is removed only after the newest is written."""
    strategy = plain(args.save_strategy)
    if strategy == "no":
        return 0
    limit = math.inf if args.save_total_limit is None else args.save_total_limit + 1
    if strategy == "steps" and steps is not None:
        each = args.save_steps if args.save_steps >= 1 else args.save_steps * steps  # a share of the steps
        return int(min(limit, max(1, steps // max(1, int(each)))))
    return int(min(limit, max(1, math.ceil(args.num_train_epochs))))


def free_disk(folder: Path) -> int:
    """Free bytes on the disk that holds ``folder``, which need not exist yet, and those of the weights and
    checkpoints in it, of the control's and of all seeds', which the run replaces.
    """
    disk = shutil.disk_usage(existing(folder))
    if not disk.total:  # a file system that does not know
        return 2**63
    held = [
        path
        for place in ("", "control/", "seed-*/", "seed-*/control/")
        for what in ("*.safetensors", "checkpoint-*/*")
        for path in folder.glob(place + what)
    ]
    return disk.free + sum(path.stat().st_size for path in held if path.is_file())
