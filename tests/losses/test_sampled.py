"""Test the losses of sampled tokens against sums over the whole vocabulary in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import fastkd


def sides(columns: int = 9) -> tuple[Tensor, Tensor]:
    """The student's logits, with a graph, and the teacher's log-probabilities."""
    torch.manual_seed(5)
    logits = torch.randn(columns, dtype=torch.float64, requires_grad=True)
    return logits, (2 * torch.randn(columns, dtype=torch.float64)).log_softmax(-1)


def expected(
    estimator: str, logits: Tensor, given: Tensor, drawn: Tensor, **options: Any
) -> tuple[float, Tensor]:
    """The loss's expectation over all tokens, drawn with these probabilities, and that of its gradient."""
    losses = fastkd.sampled_kd_loss(
        logits.log_softmax(-1), given, estimator=estimator, reduction="none", **options
    )
    gradients = [torch.autograd.grad(one, logits, retain_graph=True)[0] for one in losses]
    return float(losses.detach() @ drawn), drawn @ torch.stack(gradients)


def exact(logits: Tensor, given: Tensor, divergence: str) -> tuple[float, Tensor]:
    own = logits.log_softmax(-1)
    terms = {"reverse": own.exp() * (own - given), "forward": given.exp() * (given - own)}[divergence]
    value = terms.sum()
    return float(value.detach()), torch.autograd.grad(value, logits)[0]


@pytest.mark.parametrize(
    ("estimator", "of_value", "of_gradient"),
    [("k1", "reverse", "reverse"), ("k2", None, "reverse"), ("k3", "reverse", "forward")],
)
def test_expectations(estimator: str, of_value: str | None, of_gradient: str) -> None:
    logits, given = sides()
    own = logits.detach().softmax(-1)
    value, gradient = expected(estimator, logits, given, own)
    if of_value is not None:
        assert value == pytest.approx(exact(logits, given, of_value)[0], rel=1e-12)
    torch.testing.assert_close(gradient, exact(logits, given, of_gradient)[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("estimator", "of_gradient"), [("k1", "reverse"), ("k2", "reverse"), ("k3", "forward")]
)
def test_tokens_of_another_policy(estimator: str, of_gradient: str) -> None:
    """With the probabilities with which the tokens were drawn, the gradient stays the same on average."""
    logits, given = sides()
    behaviour = torch.randn(len(given), dtype=torch.float64).log_softmax(-1)
    _, gradient = expected(estimator, logits, given, behaviour.exp(), behaviour_logprobs=behaviour)
    torch.testing.assert_close(gradient, exact(logits, given, of_gradient)[1], rtol=1e-10, atol=1e-12)


def test_clipping_is_that_of_ppo() -> None:
    own = torch.tensor([-1.0, -1.0, -1.0, -1.0], dtype=torch.float64, requires_grad=True)
    behaviour = torch.tensor([-1.5, -0.5, -1.5, -0.5], dtype=torch.float64)
    given = torch.tensor([-3.0, -3.0, -0.2, -0.2], dtype=torch.float64)
    found = fastkd.sampled_kd_loss(own, given, behaviour_logprobs=behaviour, clip=0.2, reduction="none")
    ratio, advantage = (own - behaviour).exp().detach(), (given - own).detach()
    wanted = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    torch.testing.assert_close(found.detach(), wanted)
    gradient = torch.autograd.grad(found.sum(), own)[0]
    # The likelier token that should be less likely is followed, and so is the less likely one that should be
    # likelier; the two others have gone far enough.
    torch.testing.assert_close(gradient != 0, torch.tensor([True, False, False, True]))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_masked_tokens_count_for_nothing(estimator: str, garbage: float) -> None:
    torch.manual_seed(0)
    own = torch.randn(3, 5).mul(0.3).sub(2).requires_grad_()
    given = torch.randn(3, 5).mul(0.3).sub(2)
    mask = torch.rand(3, 5) > 0.4
    with torch.no_grad():
        own[~mask], given[~mask] = garbage, garbage
    options: dict[str, Any] = {"estimator": estimator, "mask": mask}
    whole = fastkd.sampled_kd_loss(own, given, **options)
    gradient = torch.autograd.grad(whole, own)[0]
    assert whole.isfinite() and (gradient[~mask] == 0).all() and (gradient[mask] != 0).all()
    each = fastkd.sampled_kd_loss(own, given, reduction="none", **options)
    assert (each[~mask] == 0).all()
    torch.testing.assert_close(each.sum() / mask.sum(), whole)
    halves = [
        fastkd.sampled_kd_loss(
            own[rows], given[rows], estimator=estimator, mask=mask[rows], num_items=mask.sum()
        )
        for rows in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(sum(halves), whole)
    nothing = fastkd.sampled_kd_loss(own, given, estimator=estimator, mask=torch.zeros_like(mask))
    assert nothing == 0 and (torch.autograd.grad(nothing, own)[0] == 0).all()


def test_an_impossible_token_needs_a_limit() -> None:
    own = torch.tensor([-1.0, -2.0], requires_grad=True)
    given = torch.tensor([-math.inf, -1.0])
    assert fastkd.sampled_kd_loss(own, given) == math.inf
    found = fastkd.sampled_kd_loss(own, given, advantage_clip=5.0, reduction="none")
    assert found.tolist() == [5.0, -1.0]
    gradient = torch.autograd.grad(found.sum(), own)[0]
    assert gradient.tolist() == [5.0, -1.0]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"estimator": "k4"}, ValueError, "estimator"),
        ({"reduction": "batchmean"}, ValueError, "reduction"),
        ({"reduction": "sum", "num_items": 3}, ValueError, "num_items"),
        ({"teacher_logprobs": torch.zeros(3)}, ValueError, r"teacher_logprobs has shape \(3,\)"),
        ({"teacher_logprobs": torch.zeros(2, dtype=torch.long)}, TypeError, "got torch.int64"),
        ({"logprobs": [0.0, 1.0]}, TypeError, "got list"),
        ({"mask": torch.ones(2)}, ValueError, "mask must be bool"),
        ({"clip": 0.2}, ValueError, "behaviour_logprobs"),
        ({"clip": 0.2, "behaviour_logprobs": torch.zeros(2), "estimator": "k2"}, ValueError, "k1"),
        ({"advantage_clip": 0.0}, ValueError, "must be positive"),
    ],
)
def test_refusals(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"logprobs": torch.zeros(2), "teacher_logprobs": torch.zeros(2), **changes}
    with pytest.raises(error, match=message):
        fastkd.sampled_kd_loss(given.pop("logprobs"), given.pop("teacher_logprobs"), **given)
