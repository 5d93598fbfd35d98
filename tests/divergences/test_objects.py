"""Test what a :class:`fastkd.divergences.Divergence` says of its formula, by evaluating the formula."""

from __future__ import annotations

import math

import pytest
import torch
from support.cases import CASES
from torch import Tensor

from fastkd.divergences import DIVERGENCES, Divergence, Pair

# These could be compared with the whole vocabulary, at least with some parameters, and are not: for jsd that
# is the custom, alpha_beta has one rule for all its parameters, and decoupled takes no sparse teacher.
COMPARED_ON_ENTRIES = ("jsd", "alpha_beta", "decoupled")
EVERY_CASE = pytest.mark.parametrize(("name", "parameters"), CASES, ids=str)


def numbers(divergence: Divergence, parameters: dict[str, float]) -> tuple[str, float, float]:
    """The divergence that a call with these parameters computes, with its alpha and beta."""
    given = {key: divergence.default(key) for key in ("alpha", "beta")} | parameters
    return divergence.limits.get(given["beta"], divergence.name), given["alpha"], given["beta"]


def value(name: str, alpha: float, beta: float, p: Tensor, q: Tensor) -> float:
    """``D(p, q)`` of two ``(1, classes)`` distributions. The label is class 0 where there must be one."""
    log_p, log_q = p.double().log(), q.double().log()
    ratio = (log_p - log_q).masked_fill((p == 0) & (q == 0), 0.0)
    hot = (torch.arange(p.shape[-1]) == 0).expand_as(p)
    return DIVERGENCES[name].formula(Pair(log_p, log_q, ratio, alpha, beta, hot)).value.item()


@EVERY_CASE
def test_infinite_outside(name: str, parameters: dict[str, float]) -> None:
    name, alpha, beta = numbers(DIVERGENCES[name], parameters)
    p, q = torch.tensor([[0.5, 0.2, 0.2, 0.1]]), torch.tensor([[0.3, 0.4, 0.3, 0.0]])
    stated = DIVERGENCES[name].infinite_outside(alpha, beta)
    found = value(name, alpha, beta, p, q)
    assert stated == math.isinf(found), f"infinite_outside is {stated}, but the formula gives {found}"


@EVERY_CASE
def test_over_vocabulary(name: str, parameters: dict[str, float]) -> None:
    """The rest of the student's probability counts in total only, or the divergence is not of this kind."""
    name, alpha, beta = numbers(DIVERGENCES[name], parameters)
    p = torch.tensor([[0.6, 0.4, 0.0, 0.0]])
    spread, lumped = torch.tensor([[0.5, 0.2, 0.2, 0.1]]), torch.tensor([[0.5, 0.2, 0.3, 0.0]])
    found = [value(name, alpha, beta, p, q) for q in (spread, lumped)]
    alike = all(map(math.isfinite, found)) and math.isclose(*found, rel_tol=1e-6)
    if DIVERGENCES[name].over_vocabulary(alpha, beta):
        assert alike, f"{name} is not over_vocabulary: it depends on how the rest is spread ({found})"
    elif name not in COMPARED_ON_ENTRIES:
        assert not alike, f"{name} could be over_vocabulary: it depends on the sum of the rest only"


@pytest.mark.parametrize("name", DIVERGENCES)
def test_parameters(name: str) -> None:
    divergence = DIVERGENCES[name]
    assert divergence.name == name and set(divergence.parameters) <= {"alpha", "beta"}
    for parameter in divergence.parameters.values():
        assert parameter.least <= parameter.default <= parameter.most
    assert set(divergence.limits.values()) <= set(DIVERGENCES)
    _, alpha, beta = numbers(divergence, {})
    divergence.check(alpha, beta)
    assert len(divergence.streams(alpha, beta)) <= 3


@EVERY_CASE
def test_equal_rows(name: str, parameters: dict[str, float]) -> None:
    name, alpha, beta = numbers(DIVERGENCES[name], parameters)
    p = torch.tensor([[0.5, 0.25, 0.25, 0.0]])
    assert value(name, alpha, beta, p, p) == 0
