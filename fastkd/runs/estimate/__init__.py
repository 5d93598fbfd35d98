"""Estimates memory, time per step and cache sizes of a configuration.

No weights are loaded, except those of a small teacher, where the sizes of its caches are to be measured.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import psutil
import torch

from fastkd.runs.estimate import trial
from fastkd.runs.estimate.caches import CacheSize, cache_sizes, measured_rows
from fastkd.runs.estimate.lengths import Lengths, lengths
from fastkd.runs.estimate.remedies import Remedy, remedies
from fastkd.runs.estimate.speed import Machine, measure, seconds_per_step
from fastkd.runs.estimate.step import Shape, Step, run_step
from fastkd.trainer import zero
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.teachers import TeacherSource

__all__ = ["Estimate", "Shape", "Step", "estimate", "free_bytes", "run_step"]


@dataclass(frozen=True)
class Estimate:
    """The needs of a run, per process.

    Attributes:
        device, processes: the device's type, and the number of processes that divide the work.
        train, held_out: lengths of the training and evaluation batches.
        step: memory and arithmetic of the largest batch.
        at_full_length: bytes at the peak if a row of ``max_length`` tokens occurs; None where one was seen or
            all rows were examined.
        remedies: settings that would need less memory, the best first.
        machine: this machine's measured speed; None where the caller asked for no measurement.
        seconds_per_step: lowest and highest estimate; None without ``machine``.
        tried_bytes: bytes at the peak of a step of the largest batch that ran here: of the GPU's allocator,
            or of the whole process. None where the run is too large to be tried; then ``seconds_per_step``
            comes from the machine's speed.
        steps: optimizer steps of the whole run; None where the number of rows is not known.
        caches: sizes of a teacher cache, by kind.
        process_bytes: memory of Python, torch and transformers besides the tensors (this process now).
        free_bytes: free memory of the device.
        generated_tokens: upper bound on the tokens that ``fastkd generate`` writes for the training data.
    """

    device: str
    processes: int
    train: Lengths
    held_out: Lengths | None
    step: Step
    at_full_length: int | None
    remedies: list[Remedy]
    machine: Machine | None
    seconds_per_step: tuple[float, float] | None
    tried_bytes: int | None
    steps: int | None
    caches: dict[str, CacheSize]
    process_bytes: int
    free_bytes: int
    generated_tokens: int | None

    def to_dict(self) -> dict[str, Any]:
        """The estimate as a dictionary for JSON."""
        found = asdict(replace(self, step=replace(self.step, phases={})))
        found["step"] |= {
            "peak_bytes": self.step.peak,
            "peak_phase": self.step.phase,
            "phases": {name: dict(parts) for name, parts in self.step.phases.items()},
        }
        for part in filter(None, (found["train"], found["held_out"])):
            del part["drawn"]
        return found


def estimate(
    args: DistillationConfig, processes: int | None = None, timed: bool = True, measured: bool = False
) -> Estimate:
    """Estimate a configuration.

    The estimate counts the memory of tensors (weights, gradients, optimizer state, activations, logits) for
    the largest batch in the data. The allocator's own reserve and the process itself need memory on top.

    Args:
        args: the configuration of ``fastkd distill``, or of ``fastkd train`` without a teacher.
        processes: number of processes that train together; those of this launch if None.
        timed: estimate the time of a step: run a few with random weights, or measure this machine's speed for
            a second or two where steps are too large to be tried.
        measured: run a small teacher of this machine on a few rows, to measure what a cache takes.

    Raises:
        ValueError: a model or a setting cannot be read.
    """
    args = copy.copy(args)
    zero.leave(args)
    if args.teacher is None:
        args.kd_ratio = 0.0
    processes = processes or args.world_size
    train = lengths("train_file", args, args.per_device_train_batch_size)
    if train is None:
        target = args.max_target_length if args.task == "seq2seq" else 0
        full = Shape(args.per_device_train_batch_size, args.max_length, target)
        train = Lengths(
            None, full, full, float(target or args.max_length), 0, True, "max_length, no train_file"
        )
    held_out = lengths("eval_file", args, args.per_device_eval_batch_size)
    largest = _with_samples(train.longest, train, args)
    step = run_step(args, largest, None if held_out is None else held_out.longest, processes)
    usual = step
    if train.usual != largest:
        usual = run_step(args, _with_samples(train.usual, train, args), None, processes)
    longer = replace(largest, length=args.max_length)
    held_shape = None if held_out is None else held_out.longest
    full_peak = None
    if not train.whole and largest.length < args.max_length:
        full_peak = run_step(args, longer, None, processes).peak
    process, free = psutil.Process().memory_info().rss, free_bytes(args.device)  # before models are loaded
    machine = seconds = None
    tried_bytes = None
    micro_batches = args.gradient_accumulation_steps
    if timed:
        dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
        tokens = largest.rows * train.usual.length
        machine = measure(torch.device(args.device), dtype, tokens, step.hidden)
        seconds = seconds_per_step(usual, micro_batches, machine)
        if trial.fits(args, step, seconds, processes, free):
            shapes = [_with_samples(shape, train, args) for shape in train.drawn or (train.usual,)]
            tried = trial.tried(args, largest, shapes, held_shape)
            seconds, tried_bytes = tried.seconds, tried.peak_bytes
            if args.device.type == "cpu" and len(set(shapes)) > 1:
                tried_bytes += round(trial.SCATTERED * step.phases[step.phase].get("activations", 0))
    targets = None if train.rows is None else train.rows * train.targets
    return Estimate(
        args.device.type,
        processes,
        train,
        held_out,
        step,
        full_peak,
        [] if step.reason else remedies(args, step, largest, held_shape, processes),
        machine,
        seconds,
        tried_bytes,
        _steps(args, train, processes),
        _caches(args, step, targets, measured),
        process,
        free,
        _generated(args, train),
    )


def _with_samples(shape: Shape, known: Lengths, args: DistillationConfig) -> Shape:
    """The shape with room for on-policy samples: the longest prompt and the longest answer allowed."""
    if args.lmbda == 0:
        return shape
    if args.task == "seq2seq":
        return replace(shape, target=max(shape.target, args.max_completion_length))
    return replace(shape, length=max(shape.length, known.prompt + args.max_completion_length))


def _steps(args: DistillationConfig, train: Lengths, processes: int) -> int | None:
    if args.max_steps > 0:
        return args.max_steps
    if train.rows is None:
        return None
    batches = math.ceil(train.rows / (args.per_device_train_batch_size * processes))
    return math.ceil(math.ceil(batches / args.gradient_accumulation_steps) * args.num_train_epochs)


def _caches(
    args: DistillationConfig, step: Step, targets: float | None, measured: bool
) -> dict[str, CacheSize]:
    if not TeacherSource.parse(args.teacher).is_model:
        return {}
    rows = measured_rows(args) if measured else {}
    return cache_sizes(args, step.teacher_columns, step.teacher_hidden, step.teacher_itemsize, targets, rows)


def _generated(args: DistillationConfig, train: Lengths) -> int | None:
    writes = TeacherSource.parse(args.teacher).is_model and args.task != "classification"
    if not writes or train.rows is None or args.packing:
        return None
    return train.rows * args.max_completion_length


def free_bytes(device: torch.device) -> int:
    """Free memory of the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
