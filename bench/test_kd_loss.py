"""``fastkd.kd_loss`` over logits: time beside the memory floor, and peak memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench.sizes import DTYPES, VOCAB, VOCABULARIES
from fastkd.bench.cases import Case, Problem
from fastkd.bench.oracle import Answer

OURS = ("fastkd native", "fastkd triton")
ROUTES = (*OURS, "eager", "torch.compile")
# The routes that are compared on the divergence alone, since some of them compute no cross-entropy.
ALONE = (*OURS, "eager", "liger", "trl")


def case_for(vocab: int, dtype: str, kd_ratio: float = 0.5) -> Callable[[pytest.Config], Case]:
    def case(config: pytest.Config) -> Case:
        tokens = max(1, config.getoption("--elements") // vocab)
        return Case(vocab, tokens, dtype, config.getoption("--device"), kd_ratio=kd_ratio)

    return case


CASES = [
    pytest.param(case_for(vocab, dtype), id=f"{dtype}-V{vocab}") for dtype in DTYPES for vocab in VOCABULARIES
]
ALONE_CASES = [
    pytest.param(case_for(VOCAB, dtype, kd_ratio=1), id=f"{dtype}-V{VOCAB}-alone") for dtype in DTYPES
]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("problem", CASES, indirect=True)
def test_time(
    problem: Problem, route: str, right: Answer, measure: Callable[..., None], benchmark: Any
) -> None:
    benchmark.group = problem.case.id
    measure(route, problem, right)


@pytest.mark.parametrize("route", ALONE)
@pytest.mark.parametrize("problem", ALONE_CASES, indirect=True)
def test_time_alone(
    problem: Problem, route: str, right: Answer, measure: Callable[..., None], benchmark: Any
) -> None:
    benchmark.group = f"{problem.case.id}-alone"
    measure(route, problem, right)


# A route's peak depends only on the size of the tensor, so the peers are measured at one vocabulary size.
MEMORY = [(vocab, route) for vocab in VOCABULARIES for route in ROUTES if route in OURS or vocab == VOCAB]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("vocab", "route"), MEMORY, ids=lambda x: x if isinstance(x, str) else f"V{x}")
def test_memory(
    vocab: int,
    route: str,
    dtype: str,
    measure_memory: Callable[..., None],
    request: pytest.FixtureRequest,
) -> None:
    measure_memory(route, case_for(vocab, dtype)(request.config))
