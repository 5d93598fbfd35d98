"""Times a few steps of a run on this machine, with random weights and made-up rows of the usual length."""

from __future__ import annotations

import gc
import statistics
import time
from typing import Any

import torch
from transformers import Trainer

from fastkd.runs.estimate.models import build
from fastkd.runs.estimate.step import Run, Shape, Step
from fastkd.trainer.config import DistillationConfig

# Steps are timed for this long, at least MINIMUM and at most MAXIMUM of them. The first is not counted.
SECONDS = 4.0
MINIMUM, MAXIMUM = 2, 12
# The range is the median of the timed steps times these factors: batches differ in length, and other work on
# the machine comes and goes.
FASTER, SLOWER = 0.75, 1.5

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


def seconds_per_step(args: DistillationConfig, usual: Shape) -> tuple[float, float]:
    """The lowest and highest estimate for one optimizer step of one process, from steps that really run.

    Both models are built from their ``config.json`` with random weights, since the time of a step does not
    depend on their values.

    Args:
        args: the configuration.
        usual: the shape of a usual batch.
    """
    device = torch.device(args.device)
    taken: list[float] = []
    with device:
        run = Run(args, build(args), device, 1)
        optimizer = _optimizer(args, run)
        began = time.perf_counter()
        while len(taken) <= MINIMUM or (len(taken) <= MAXIMUM and time.perf_counter() - began < SECONDS):
            start = time.perf_counter()
            for _ in range(args.gradient_accumulation_steps):
                run.backward(run.batch(usual, "train"))
            optimizer.step()
            optimizer.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - start)
    del run, optimizer
    gc.collect()
    middle = statistics.median(taken[1:])
    return FASTER * middle, SLOWER * middle


def _optimizer(args: DistillationConfig, run: Run) -> Any:
    kind, options = Trainer.get_optimizer_cls_and_kwargs(args, run.sides.student)
    return kind(run.trained, **options)
