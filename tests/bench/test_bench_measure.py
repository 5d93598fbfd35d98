"""Test the counting of bytes, the floors, and the measurement of memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fastkd.bench import device as devices, floor, measure, memory, oracle
from fastkd.bench.cases import Case, make_problem
from fastkd.bench.peers import ROUTES


def test_bytes_are_counted() -> None:
    case = Case(1000, 30, "bfloat16")
    assert case.least_bytes == 3 * 30 * 1000 * 2
    assert dataclasses.replace(case, backward=False).least_bytes == 2 * 30 * 1000 * 2
    linear = Case(1000, 30, "float32", student_width=4, teacher_width=8)
    problem = make_problem(linear)
    tensors = (*problem.student, *problem.teacher)
    assert linear.input_bytes == sum(x.nbytes for x in tensors)
    assert linear.gradient_bytes == sum(x.nbytes for x in problem.student)


def test_inputs_together_exceed_the_cache_several_times() -> None:
    cpu = devices.of("cpu")
    case = Case(1000, 1000, "float32")  # 8 MB for both sides
    sets = devices.sets_needed(cpu, case)
    assert sets == devices.MOST_SETS or sets * case.input_bytes >= devices.CACHES * cpu.cache_bytes()
    a, b = (make_problem(case, seed=seed) for seed in (0, 1))
    assert not torch.equal(a.student[0], b.student[0])
    assert torch.equal(a.student[0], make_problem(case).student[0])


def test_the_gradients_of_one_set_are_alive_at_a_time() -> None:
    """Otherwise the memory of each set's gradients would be new to the first call with that set."""
    case = Case(30, 5, "float32")
    problems = [make_problem(case, seed=seed) for seed in range(3)]

    def timer(_: object, calls: Sequence[Callable[[], object]], seconds: float) -> list[float]:
        for call, problem in zip(calls, problems, strict=True):
            call()
            having = [other for other in problems if other.student[0].grad is not None]
            assert having == [problem]
        return [1.0, 2.0, 3.0]

    right = oracle.answer(problems[0])
    entry = measure.route_on_case(
        devices.of("cpu"), ROUTES["fastkd native"], problems, right, 0.1, memory=False, timer=timer
    )
    assert (entry["status"], entry["ms"]) == ("ok", 2000.0)


def test_the_floor_behind_heads_is_the_time_of_the_products() -> None:
    """The floor of a linear loss is its matrix products: four with a teacher, three without."""
    torch.manual_seed(0)
    case = Case(30, 5, "float32", student_width=4, teacher_width=8)
    problem = make_problem(case)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        floor.products(problem)()
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["aten::mm"] == 4
    problem.case = dataclasses.replace(case, kd_ratio=0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        floor.products(problem)()
    assert {event.key: event.count for event in profile.key_averages()}["aten::mm"] == 3


def test_the_threaded_copy_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[bool] = []
    real = floor._median

    def watched(device: Any, calls: list[Callable[[], object]]) -> float:
        seconds = real(device, calls)
        copied.append(all(torch.equal(target, source) for target, source in pairs))
        return seconds

    pairs: list[tuple[Tensor, Tensor]] = []
    real_copy = floor._threaded_copy
    monkeypatch.setattr(
        floor, "_threaded_copy", lambda pool, t, s: (pairs.append((t, s)), real_copy(pool, t.zero_(), s))[1]
    )
    monkeypatch.setattr(floor, "_median", watched)
    source = torch.randn(7, 1001, dtype=torch.bfloat16)
    assert floor.copy_bandwidth(devices.of("cpu"), [source]) > 0
    assert len(pairs) == 2 and copied[-1]


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    case = Case(50_000, 256, "float32")
    peaks = {
        route: memory.peak_extra_in_child(route, case) / case.logits_bytes
        for route in ("fastkd native", "eager")
    }
    assert 0.95 < peaks["fastkd native"] < 1.3
    assert 3 < peaks["eager"] < 8
    with pytest.raises(RuntimeError, match="the process that measures memory failed"):
        memory.peak_extra_in_child("nobody", case)
