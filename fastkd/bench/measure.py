"""Measures one route on one case: whether it is right, then its time between two floors, and its memory."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from fastkd.bench import floor, oracle
from fastkd.bench.cases import Case, Problem, make_problem, step
from fastkd.bench.device import Device, time_calls
from fastkd.bench.routes import Route

Entry = dict[str, Any]
# Seconds of single calls, given the device, the calls to go through in turn, and about how long to measure.
Timer = Callable[[Device, Sequence[Callable[[], object]], float], Sequence[float]]

QUANTILES = (10, 25, 75, 90)
DEFAULT = "default"  # the allocator mode in which this process was started


def blank(case: Case, route: Route, allocator: str | None = DEFAULT) -> Entry:
    """The fields that every entry has, before any measurement: the case and the route."""
    return {
        **asdict(case),
        "op": case.op,
        "route": route.name,
        "ours": route.ours,
        "allocator": allocator,
        "logits_bytes": case.logits_bytes,
        "status": "ok",
    }


def checked(entry: Entry, errors: oracle.Errors, allowed: tuple[float, float]) -> bool:
    """Write the errors into ``entry``; returns whether they are within ``allowed``."""
    entry.update(
        value_error=finite(errors.value),
        gradient_error=finite(errors.gradient),
        allowed_errors=list(allowed),
    )
    if errors.within(allowed):
        return True
    of_gradient = "" if errors.gradient is None else f", the gradient by {errors.gradient:.1e}"
    entry.update(status="wrong", reason=f"the loss is off by {errors.value:.1e}{of_gradient}")
    return False


def finite(x: float | None) -> float | None:
    """``x`` if it is finite, else None, since JSON has no NaN."""
    return x if x is not None and math.isfinite(x) else None


def with_times(entry: Entry, case: Case, seconds: Sequence[float], floors: Sequence[floor.Floor]) -> Entry:
    """``entry`` with the median and quantiles of ``seconds``, the bandwidth that follows, and the floors.

    The floors are those before and after the calls.
    """
    ms = 1e3 * statistics.median(seconds)
    cuts = statistics.quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 99
    entry.update(
        ms=ms,
        quantiles_ms={str(q): 1e3 * cuts[q - 1] for q in QUANTILES},
        calls=len(seconds),
    )
    if not case.linear:
        entry["gb_per_s"] = case.least_bytes / ms / 1e6
    entry["floor_ms"] = [1e3 * f.seconds for f in floors]
    bandwidths = [f.bandwidth / 1e9 for f in floors if f.bandwidth is not None]
    if bandwidths:
        entry["copy_gb_per_s"] = bandwidths
    return entry


def route_on_case(
    device: Device,
    route: Route,
    problems: Sequence[Problem],
    right: oracle.Answer,
    seconds: float,
    memory: bool,
    allocator: str = DEFAULT,
    timer: Timer = time_calls,
) -> Entry:
    """The entry of ``route``: times and memory if its answer is right, else its errors alone.

    Args:
        problems: sets of inputs that the calls go through in turn.
        right: the oracle's answer to the first problem.
        seconds: about how long to measure.
        memory: whether to measure peak memory too.
        timer: times the calls; pytest-benchmark's entry points pass one of their own.
    """
    case = problems[0].case
    entry = blank(case, route, allocator)
    value = step(route.loss, problems[0])
    errors = oracle.errors(problems[0], value, right)
    if not checked(entry, errors, oracle.tolerance(case, route.ours)):
        return entry
    before = _floor(device, problems)

    def call(problem: Problem) -> None:
        # The last call's gradients are freed first, as in training, where one step's logits are alive at a
        # time: with the gradients of all sets alive, each set's first call would have to map new pages.
        _free_gradients(problems)
        step(route.loss, problem)

    times = timer(device, [functools.partial(call, problem) for problem in problems], seconds)
    # The floor is measured before and after, since the two disagree if the machine was busy for a while.
    after = _floor(device, problems)
    with_times(entry, case, times, (before, after))
    entry["input_sets"] = len(problems)
    if memory:
        try:
            entry["peak_extra_bytes"] = device.peak_extra(route, problems[0])
        except (RuntimeError, OSError) as error:  # the measured time remains valid
            entry["no_memory_because"] = " ".join(str(error).split())
    return entry


def memory_of(device: Device, route: Route, case: Case) -> Entry:
    """The entry of a route whose peak memory alone is measured; its ``allocator`` is None."""
    entry = blank(case, route, None)
    # On a CPU the child process that measures creates the tensors itself.
    on_cpu = device.kind == "cpu"
    problem = Problem(case, (), (), torch.empty(0)) if on_cpu else make_problem(case, device.where)
    if not on_cpu:
        step(route.loss, problem)
    entry["peak_extra_bytes"] = device.peak_extra(route, problem)
    return entry


def without(entry: Entry, error: Exception) -> Entry:
    """``entry`` of a route that raised ``error``: skipped if memory ran out, else failed."""
    said = " ".join(str(error).split())[:300]
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        entry.update(status="skipped", reason="out of memory")
    else:
        entry.update(status="failed", reason=f"{type(error).__name__}: {said}")
    return entry


def _free_gradients(problems: Sequence[Problem]) -> None:
    for problem in problems:
        for x in problem.student:
            x.grad = None


def _floor(device: Device, problems: Sequence[Problem]) -> floor.Floor:
    _free_gradients(problems)
    return floor.measured(device, problems)
