"""The suite under pytest-benchmark, which times the calls; everything else is ``fastkd.bench``'s."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from fastkd.bench import device as devices, measure, oracle, peers, variants
from fastkd.bench.cases import Case, Problem, make_problem
from fastkd.bench.device import Call, Device
from fastkd.bench.routes import Route
from fastkd.bench.suite import SECONDS

CUDA_CALLS_PER_ROUND = 20


@functools.lru_cache(maxsize=1)
def problem_of(case: Case) -> tuple[Problem, oracle.Answer]:
    """The tensors of a case and the right answer, made once for all routes in succession."""
    peers.forget_compiled()
    problem = make_problem(case)
    return problem, oracle.answer(problem)


def timer(benchmark: Any) -> measure.Timer:
    def time_calls(device: Device, calls: Sequence[Call], seconds: float) -> list[float]:
        (call,) = calls
        if device.kind == "cpu":
            call()
            (once,) = device.clock(calls, 1)
            rounds = min(devices.MOST_CALLS, max(device.least_calls, math.ceil(seconds / once)))
            return rounds_of(call, 1, rounds)

        def many_calls() -> None:
            # Many calls per wait, so that the time is the device's and not that of launching one call.
            for _ in range(CUDA_CALLS_PER_ROUND):
                call()
            device.wait()

        return rounds_of(many_calls, CUDA_CALLS_PER_ROUND, 9, warmup_rounds=2)

    def rounds_of(call: Callable[[], object], calls: int, rounds: int, **options: int) -> list[float]:
        benchmark.extra_info["calls_per_round"] = calls
        benchmark.pedantic(call, rounds=rounds, **options)
        return [seconds / calls for seconds in benchmark.stats.stats.data]

    return time_calls


def keep(benchmark: Any, entry: measure.Entry) -> None:
    """Record an entry beside pytest-benchmark's times; a wrong answer of fastkd's fails the test."""
    benchmark.extra_info["entry"] = entry
    if entry["status"] == "wrong" and not entry.get("ours", True):
        pytest.skip(f"{entry['reason']}: it computes something else")
    assert entry["status"] == "ok", f"{entry['reason']}: no speed is stated"


def test_time(case: Case, route: Route, benchmark: Any) -> None:
    benchmark.group = case.id
    problem, right = problem_of(case)
    entry = measure.route_on_case(
        *(devices.of(case.device), route, [problem], right, SECONDS), memory=False, timer=timer(benchmark)
    )
    keep(benchmark, entry)


def test_memory(case: Case, route: Route, benchmark: Any) -> None:
    device = devices.of(case.device)
    keep(benchmark, benchmark.pedantic(measure.memory_of, args=(device, route, case), rounds=1))


def test_variant(variant: variants.Variant, case: Case, benchmark: Any) -> None:
    device = devices.of(case.device)
    keep(benchmark, variants.measured(device, variant, case, SECONDS, timer=timer(benchmark)))
