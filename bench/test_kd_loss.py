"""``fastkd.kd_loss`` over logits: time as a share of the memory floor, and peak memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench.cases import DTYPES, VOCABULARIES, Case, Problem
from bench.oracle import Answer

ROUTES = ("fastkd", "eager", "torch.compile", "trl")


def case_for(vocab: int, dtype: str) -> Callable[[pytest.Config], Case]:
    def case(config: pytest.Config) -> Case:
        tokens = max(1, config.getoption("--elements") // vocab)
        return Case(vocab, tokens, dtype, config.getoption("--device"))

    return case


CASES = [
    pytest.param(case_for(vocab, dtype), id=f"{dtype}-V{vocab}") for dtype in DTYPES for vocab in VOCABULARIES
]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("problem", CASES, indirect=True)
def test_time(
    problem: Problem,
    route: str,
    right: Answer,
    bandwidth: float,
    measure: Callable[..., None],
    benchmark: Any,
) -> None:
    benchmark.group = problem.case.id
    benchmark.extra_info["bandwidth"] = bandwidth
    measure(route, problem, right)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("case", CASES)
def test_memory(
    case: Callable[[pytest.Config], Case],
    route: str,
    measure_memory: Callable[..., None],
    request: pytest.FixtureRequest,
) -> None:
    measure_memory(route, case(request.config))
