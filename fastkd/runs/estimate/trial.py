"""Tries a few steps of a run on this machine, with random weights and made-up rows: their time and memory."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Trainer

from fastkd.runs.clock import peak_memory_mb, reset_peak_memory
from fastkd.runs.estimate.models import build
from fastkd.runs.estimate.step import Run, Shape, Step
from fastkd.trainer.config import DistillationConfig

# Steps are timed for this long, at least MINIMUM and at most MAXIMUM of them. The first is not counted.
SECONDS = 4.0
MINIMUM, MAXIMUM = 2, 12
# The range is the median of the timed steps times these factors: batches differ in length, and other work on
# the machine comes and goes.
FASTER, SLOWER = 0.75, 1.5

# Over a run, the heap of a process on the CPU grows beyond the peak of a few steps where batches differ in
# length, because a freed block seldom fits the next batch. bench/NOTES.md has the measurements: it grew by
# this share of the activations, or somewhat more or less.
SCATTERED = 0.6

# A larger run is not tried: bytes at the peak as a share of what is free, parameters to be drawn at random,
# and seconds of a step by the machine's speed.
SHARE, PARAMETERS, LONGEST = 0.5, 400_000_000, 20.0


def fits(
    args: DistillationConfig, step: Step, seconds: tuple[float, float], processes: int, free: int
) -> bool:
    """Whether some steps of the run can be tried here.

    Args:
        args: the configuration.
        step: memory and arithmetic of the largest batch.
        seconds: the lowest and highest estimate for a step, from the machine's speed.
        processes: number of processes of the run.
        free: free bytes of the device.
    """
    quantised = any(
        isinstance(kwargs, dict) and kwargs.get("quantization_config")
        for kwargs in (args.model_init_kwargs, args.teacher_model_init_kwargs)
    )
    return (
        step.reason is None
        and not quantised
        and processes == 1
        and step.peak < SHARE * free
        and step.parameters + step.teacher_parameters < PARAMETERS
        and seconds[0] < LONGEST
    )


@dataclass(frozen=True)
class Trial:
    """The measurements of steps that ran.

    Attributes:
        seconds: the lowest and highest estimate for one optimizer step of one process.
        peak_bytes: the peak of all steps: of the GPU's allocator, or of the whole process.
    """

    seconds: tuple[float, float]
    peak_bytes: int


def tried(
    args: DistillationConfig, largest: Shape, usual: Sequence[Shape], held_out: Shape | None = None
) -> Trial:
    """Run a step of the largest batch, an evaluation batch, and steps of usual batches, which are timed.

    Both models are built from their ``config.json`` with random weights, since neither time nor memory of a
    step depends on their values.

    Args:
        args: the configuration.
        largest: the shape of the largest training batch.
        usual: the shapes of some training batches, one for each step in turn.
        held_out: the shape of the largest evaluation batch; None without evaluation data.
    """
    device = torch.device(args.device)
    taken: list[float] = []
    gc.collect()
    reset_peak_memory()
    with device:
        run = Run(args, build(args), device, 1)
        optimizer = _optimizer(args, run)
        _step(args, run, optimizer, largest)
        if held_out is not None:
            run.evaluate(run.batch(held_out, "evaluation"))
        began = time.perf_counter()
        while len(taken) <= MINIMUM or (len(taken) <= MAXIMUM and time.perf_counter() - began < SECONDS):
            shape = usual[len(taken) % len(usual)]
            start = time.perf_counter()
            _step(args, run, optimizer, shape)
            taken.append(time.perf_counter() - start)
        # The steps after the largest one count too, because batches of other lengths break up the heap.
        peak = int(peak_memory_mb() * 2**20)
    del run, optimizer
    gc.collect()
    middle = statistics.median(taken[1:])
    return Trial((FASTER * middle, SLOWER * middle), peak)


def _step(args: DistillationConfig, run: Run, optimizer: Any, shape: Shape) -> None:
    for _ in range(args.gradient_accumulation_steps):
        run.backward(run.batch(shape, "train"))
    optimizer.step()
    optimizer.zero_grad()
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)


def _optimizer(args: DistillationConfig, run: Run) -> Any:
    kind, options = Trainer.get_optimizer_cls_and_kwargs(args, run.sides.student)
    return kind(run.trained, **options)
