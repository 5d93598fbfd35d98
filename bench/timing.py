"""Seconds of a call, on either kind of device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch


def median_seconds(call: Callable[[], object], device: str, rounds: int = 7) -> float:
    """The median over ``rounds`` calls after two to warm up: the clock on a CPU, events on a GPU."""
    for _ in range(2):
        call()
    seconds = []
    if device == "cpu":
        for _ in range(rounds):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    else:
        new_event: Any = partial(torch.cuda.Event, enable_timing=True)
        for _ in range(rounds):
            start_event, end_event = new_event(), new_event()
            start_event.record()
            call()
            end_event.record()
            end_event.synchronize()
            seconds.append(start_event.elapsed_time(end_event) / 1e3)
    return statistics.median(seconds)
