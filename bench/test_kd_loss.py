"""``fastkd.kd_loss`` over logits: time as a share of the memory floor, and peak memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bench.cases import DTYPES, VOCABULARIES, Case, Problem
from bench.floor import memory_seconds
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
    problem: Problem, route: str, right: Answer, measure: Callable[..., None], benchmark: Any
) -> None:
    benchmark.group = problem.case.id
    measure(route, problem, right, memory_seconds)


# Everyone's peak grows with the tensor alone, so the peers are asked at one vocabulary.
MEMORY = [
    (vocab, route) for vocab in VOCABULARIES for route in ROUTES if route == "fastkd" or vocab == 151_936
]


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
