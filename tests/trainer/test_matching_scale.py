"""Test that losses between layers have no unit, and that a weight that drowns the task is named."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.tiny import llama, rows
from torch import Tensor

from fastkd.trainer import DistillationConfig, DistillationTrainer
from fastkd.trainer.matches import FeatureMatch
from fastkd.trainer.matching.balance import drowning
from fastkd.trainer.matching.features import attention_loss, hidden_loss, relation_loss

Configuration = Callable[..., DistillationConfig]
SEGMENTS = torch.tensor([[0, 0, 0, 0, -1], [1, 1, 2, 2, 2]])


def states(seed: int, width: int = 7, dtype: torch.dtype = torch.float32) -> Tensor:
    """Hidden states of two rows; the first row's last position is padding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 5, width, generator=generator, dtype=torch.float64).to(dtype)


def maps(seed: int, heads: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, heads, 5, 5, generator=generator, dtype=torch.float64).softmax(-1)


@pytest.mark.parametrize("scale", [1e-3, 100.0])
@pytest.mark.parametrize("loss", ["mse", "cosine"])
def test_the_size_of_hidden_states_changes_nothing(loss: str, scale: float) -> None:
    s, t = states(0), states(1)
    torch.testing.assert_close(hidden_loss(scale * s, scale * t, loss), hidden_loss(s, t, loss))


@pytest.mark.parametrize("loss", ["mse", "kl"])
def test_the_size_of_either_models_states_does_not_change_relations(loss: str) -> None:
    s, t = states(0), states(1, width=11)
    expected = relation_loss(s, t, SEGMENTS, loss)
    for a, b in ((100.0, 1.0), (1.0, 1e-3), (0.01, 100.0)):
        torch.testing.assert_close(relation_loss(a * s, b * t, SEGMENTS, loss), expected)


def test_a_student_that_gives_nothing_has_the_error_one() -> None:
    """So a weighted squared error is a share of the teacher's square, for layers of any kind."""
    for t in (states(1), 50 * states(1)):
        torch.testing.assert_close(hidden_loss(torch.zeros_like(t), t, "mse"), torch.ones(2, 5))
    t = maps(1).float()
    torch.testing.assert_close(attention_loss(torch.zeros_like(t), t, "mse"), torch.ones(2, 5))


def test_a_teacher_that_gives_nothing_measures_nothing() -> None:
    """The embedding of a padding token, for example, is 0. Neither value nor gradient may be NaN or huge."""
    t = states(1)
    t[0, 2] = 0.0
    s = states(0).requires_grad_()
    value = hidden_loss(s, t, "mse")
    value.sum().backward()
    assert value[0, 2] == 0 and s.grad is not None and s.grad[0, 2].eq(0).all()
    assert torch.isfinite(s.grad).all() and value[0, 1] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_equal_plain_torch(dtype: torch.dtype) -> None:
    """Each value is recomputed for itself in float64, for documents of uneven lengths beside padding."""
    s, t = states(0, 7), states(1, 7)
    s64, t64 = states(0, 7, torch.float64), states(1, 7, torch.float64)
    found = {
        (kind, loss): (hidden_loss if kind == "hidden" else relation_loss)(
            s.to(dtype), t.to(dtype), *(() if kind == "hidden" else (SEGMENTS,)), loss
        )
        for kind, loss in (("hidden", "mse"), ("relation", "mse"), ("relation", "kl"))
    }
    for b, i in ((SEGMENTS >= 0).nonzero()).tolist():
        others = [j for j in range(5) if SEGMENTS[b, j] == SEGMENTS[b, i]]
        own, aim = s64[b, i], t64[b, i]
        near_own = torch.stack([torch.cosine_similarity(own, s64[b, j], dim=0) for j in others])
        near_aim = torch.stack([torch.cosine_similarity(aim, t64[b, j], dim=0) for j in others])
        p, q = (torch.softmax(math.sqrt(7) * near, 0) for near in (near_aim, near_own))
        expected = {
            ("hidden", "mse"): (own - aim).square().sum() / aim.square().sum(),
            ("relation", "mse"): (near_own - near_aim).square().sum() / near_aim.square().sum(),
            ("relation", "kl"): (p * (p / q).log()).sum(),
        }
        for name, value in expected.items():
            assert float(found[name][b, i]) == pytest.approx(float(value), rel=1e-5), name
    a, m = maps(0), maps(1)
    expected_map = ((a - m).square().sum(-1) / m.square().sum(-1)).mean(1)
    torch.testing.assert_close(attention_loss(a.to(dtype), m.to(dtype), "mse"), expected_map.to(dtype))


MATCHES = [FeatureMatch(1, 1, "hidden", "mse", 50.0), FeatureMatch(1, 1, "relation", "kl", 2.0)]


def test_drowning_names_the_weight_that_balances() -> None:
    means = {"loss": 2.0, "feature_hidden": 100.0, "feature_relation": 19.9, "saliency": 20.1}
    hidden, saliency = drowning(means, MATCHES, 3.0)
    assert "kind hidden, weight 50: this loss is 100, 50 times the loss on the logits (2)" in hidden.found
    assert hidden.remedy == "feature_matches of kind hidden, weight 1 makes both equal at the start"
    assert saliency.remedy.startswith("gradient_match_weight 0.3 ")
    assert drowning({**means, "loss": 10.1}, MATCHES, 3.0) == []
    assert (
        drowning({**means, "loss": 0.0}, MATCHES, 3.0)
        == drowning({**means, "loss": math.nan}, MATCHES, 3)
        == []
    )


def trained(configuration: Configuration, weight: float | None) -> DistillationTrainer:
    match: dict[str, Any] = {"student": 1, "teacher": 1}
    args = configuration(feature_matches=[match if weight is None else {**match, "weight": weight}])
    trainer = DistillationTrainer(llama(0), llama(1, hidden=24), args, train_dataset=rows(16))
    trainer.train()
    return trainer


def test_a_run_warns_once_of_a_weight_that_drowns_its_task(
    configuration: Configuration, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "fastkd"):
        logs = trained(configuration, 1e4).state.log_history
    said = [record.getMessage() for record in caplog.records if "hardly learns" in record.getMessage()]
    assert len([entry for entry in logs if "loss" in entry]) == 2 and len(said) == 1
    balanced = float(said[0].split("weight ")[2].split(" ")[0])
    caplog.clear()
    for weight in (balanced, None):
        with caplog.at_level(logging.WARNING, "fastkd"):
            trained(configuration, weight)
        assert "hardly learns" not in caplog.text
