"""``fastkd.linear_kd_loss`` over hidden states: time beside the matrix products alone, and peak memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench.sizes import VOCAB
from fastkd.bench.cases import Case, Problem
from fastkd.bench.oracle import Answer

ROUTES = ("fastkd native", "fastkd triton", "eager", "torch.compile", "liger chunked", "orda")


def time_case(config: pytest.Config) -> Case:
    tokens = max(1, config.getoption("--elements") // VOCAB)
    return Case(VOCAB, tokens, "bfloat16", config.getoption("--device"), student_width=256, teacher_width=512)


def memory_case(config: pytest.Config) -> Case:
    tokens = max(1, 4 * config.getoption("--elements") // VOCAB)
    return Case(VOCAB, tokens, "float32", config.getoption("--device"), student_width=64, teacher_width=128)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("problem", [pytest.param(time_case, id="bfloat16-H256/512")], indirect=True)
def test_time(
    problem: Problem, route: str, right: Answer, measure: Callable[..., None], benchmark: Any
) -> None:
    benchmark.group = problem.case.id
    measure(route, problem, right)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("case", [pytest.param(memory_case, id="float32-H64/128")])
def test_memory(
    case: Callable[[pytest.Config], Case],
    route: str,
    measure_memory: Callable[..., None],
    request: pytest.FixtureRequest,
) -> None:
    measure_memory(route, case(request.config))
