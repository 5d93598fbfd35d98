"""Defines the options, and the fixtures that check and time every route in the same way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import fastkd
from bench.sizes import ELEMENTS
from fastkd.bench import device as devices, floor, measure as measuring, oracle
from fastkd.bench.cases import Case, Problem, make_problem, step
from fastkd.bench.peers import ROUTES
from fastkd.bench.versions import versions

SECONDS_PER_ROUTE = 2.0
CUDA_CALLS_PER_ROUND = 20


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastkd benchmarks")
    group.addoption("--device", default="cpu", choices=("cpu", "cuda"))
    group.addoption(
        "--elements", type=int, default=ELEMENTS, help="logits per tensor, tokens times vocabulary"
    )


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    device = config.getoption("--device")
    machine_info["fastkd"] = {
        "device": devices.of(device).name(),
        "device_type": device,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "backends": fastkd.available_backends(),
    }


@pytest.fixture(scope="module")
def problem(request: pytest.FixtureRequest) -> Iterator[Problem]:
    """The tensors of the case in ``request.param``, made once for all routes."""
    yield make_problem(request.param(request.config))


@pytest.fixture(scope="module")
def right(problem: Problem) -> oracle.Answer:
    return oracle.answer(problem)


def time_call(benchmark: Any, call: Callable[[], object], device: str) -> int:
    """Run at least three rounds of ``call`` in ``benchmark``; returns the number of calls in a round."""
    if device == "cpu":
        call()
        start = time.perf_counter()
        call()
        rounds = min(50, max(3, math.ceil(SECONDS_PER_ROUTE / (time.perf_counter() - start))))
        benchmark.pedantic(call, rounds=rounds)
        return 1

    def calls() -> None:
        # Many calls per wait, so that the time is the device's and not that of launching one call.
        for _ in range(CUDA_CALLS_PER_ROUND):
            call()
        torch.cuda.synchronize()

    benchmark.pedantic(calls, rounds=9, warmup_rounds=2)
    return CUDA_CALLS_PER_ROUND


@pytest.fixture
def measure(benchmark: Any) -> Callable[[str, Problem, oracle.Answer], None]:
    """Checks a route against the oracle, then times it. A wrong answer of fastkd's fails the test."""

    def run(name: str, problem: Problem, right: oracle.Answer) -> None:
        case, route = problem.case, ROUTES[name]
        skip_missing(name, case)
        device = devices.of(case.device)

        def call() -> torch.Tensor:
            return step(route.loss, problem)

        entry = measuring.blank(case, route)
        errors = oracle.errors(problem, call(), right)
        if not measuring.checked(entry, errors, oracle.tolerance(case, route.ours)):
            assert not route.ours, f"{entry['reason']}: no speed is worth that"
            pytest.skip(f"{entry['reason']}: it computes something else")
        before = floor.measured(device, [problem])
        calls_per_round = time_call(benchmark, call, case.device)
        # The floor is measured before and after, since the two disagree if the machine was busy for a while.
        measuring.with_floors(entry, (before, floor.measured(device, [problem])))
        benchmark.extra_info.update(entry=entry, calls_per_round=calls_per_round)

    return run


@pytest.fixture
def measure_memory(benchmark: Any) -> Callable[[str, Case], None]:
    """Records the peak extra memory of a route; on a CPU in a process of its own."""

    def run(name: str, case: Case) -> None:
        skip_missing(name, case)
        route, device = ROUTES[name], devices.of(case.device)
        # On a CPU the child process that measures creates the tensors itself.
        problem = Problem(case, (), (), torch.empty(0)) if case.device == "cpu" else make_problem(case)
        if case.device != "cpu":
            step(route.loss, problem)
        peak = benchmark.pedantic(device.peak_extra, args=(route, problem), rounds=1)
        entry = {**measuring.blank(case, route), "allocator": None, "peak_extra_bytes": peak}
        benchmark.extra_info.update(entry=entry)

    return run


def skip_missing(name: str, case: Case) -> None:
    route = ROUTES[name]
    if not route.takes(case):
        pytest.skip(f"{name} does not compute {case.quantity}")
    reason = route.absent(case.device)
    if reason is not None:
        pytest.skip(reason)
