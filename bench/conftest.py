"""Options, the floor's bandwidth, and the one way in which every route is checked and timed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import fastkd
from bench import oracle
from bench.cases import ELEMENTS, Case, Problem, make_problem, step
from bench.memory import peak_extra_in_child
from bench.peers import ROUTES, missing
from bench.versions import describe_device, versions

# Seconds of what a problem costs at least.
Floor = Callable[[Problem], float]

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
        "device": describe_device(device),
        "device_type": device,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "backends": fastkd.backends(),
    }


@pytest.fixture(scope="module")
def problem(request: pytest.FixtureRequest) -> Iterator[Problem]:
    """The tensors of the case in ``request.param``, made once for all its routes."""
    yield make_problem(request.param(request.config))


@pytest.fixture(scope="module")
def right(problem: Problem) -> oracle.Answer:
    return oracle.answer(problem)


def time_call(benchmark: Any, call: Callable[[], object], device: str) -> int:
    """Rounds of ``call`` into ``benchmark``, at least three; how many calls a round holds."""
    if device == "cpu":
        call()
        start = time.perf_counter()
        call()
        rounds = min(50, max(3, math.ceil(SECONDS_PER_ROUTE / (time.perf_counter() - start))))
        benchmark.pedantic(call, rounds=rounds)
        return 1

    def calls() -> None:
        # Many calls to one wait, so that what is seen is the device and not the launch of one call.
        for _ in range(CUDA_CALLS_PER_ROUND):
            call()
        torch.cuda.synchronize()

    benchmark.pedantic(calls, rounds=9, warmup_rounds=2)
    return CUDA_CALLS_PER_ROUND


@pytest.fixture
def measure(benchmark: Any) -> Callable[[str, Problem, oracle.Answer, Floor], None]:
    """Checks a route against the oracle, then times it. A wrong answer of fastkd's fails and gets no time."""

    def run(route: str, problem: Problem, right: oracle.Answer, floor: Floor) -> None:
        case = problem.case
        skip_missing(route, case)

        def call() -> torch.Tensor:
            return step(ROUTES[route], problem)

        value_error, gradient_error = oracle.errors(problem, call(), right)
        if route == "fastkd":
            allowed = oracle.tolerance(case)
            assert value_error <= allowed[0], f"the loss is off by {value_error:.1e}: no speed is worth that"
            assert gradient_error <= allowed[1], f"the gradient is off by {gradient_error:.1e}, as above"
        before = floor(problem)
        calls_per_round = time_call(benchmark, call, case.device)
        # The floor at both ends, so that a machine that was busy for a while is noticed.
        benchmark.extra_info.update(
            record(route, case),
            calls_per_round=calls_per_round,
            floor_seconds=[before, floor(problem)],
            value_error=value_error,
            gradient_error=gradient_error,
        )

    return run


@pytest.fixture
def measure_memory(benchmark: Any) -> Callable[[str, Case], None]:
    """Records the peak extra memory of a route, found in a process of its own."""

    def run(route: str, case: Case) -> None:
        skip_missing(route, case)
        peak = benchmark.pedantic(peak_extra_in_child, args=(route, case), rounds=1)
        benchmark.extra_info.update(record(route, case), peak_extra=peak)

    return run


def skip_missing(route: str, case: Case) -> None:
    reason = missing(route, case)
    if reason is not None:
        pytest.skip(reason)


def record(route: str, case: Case) -> dict[str, Any]:
    return {"route": route, "case": case.__dict__, "case_id": case.id, "logits_bytes": case.logits_bytes}
