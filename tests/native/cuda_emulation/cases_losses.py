"""Cases of the CUDA kernels by themselves: the terms of the loss, the label and the metrics.

``test_cuda_emulation.py`` runs them on the emulated kernels.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from support.kernel_calls import (
    DTYPES,
    KERNEL,
    Named,
    call_of,
    compare,
    expected_of,
    logits,
    named,
    parameters,
    results,
    spec,
)


@parameters
@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (2.0, 2.0), (1.7, 0.8)], ids=str)
def test_parameters(divergence: Named, temperatures: tuple[float, float]) -> None:
    s, t, labels = logits(3, 700, torch.float32), logits(3, 700, torch.float32), torch.tensor([5, 699, 400])
    both = dict(zip(("temperature", "teacher_temperature"), temperatures, strict=True))
    for metrics in (False, True):
        compare(s, t, labels, spec(700, divergence, **both), metrics=metrics)
        compare(s, t, labels, spec(700, divergence, **both, ce_weight=0.0, z_loss=0.0), metrics=metrics)


@named
@pytest.mark.parametrize("metrics", [False, True])
def test_labels_outside_the_vocabulary(divergence: Named, metrics: bool) -> None:
    s, t = logits(6, 40, torch.float32), logits(6, 40, torch.float32)
    s[0, 4] = t[0, 4] = float("nan")  # ignored
    labels = torch.tensor([3, 40, -1, 2**40, -100, 39])
    compare(s, t, labels, spec(40, divergence))
    call = call_of(s, t, labels, spec(40, divergence), metrics=True)
    KERNEL.rows(call)
    assert call.metrics is not None and call.metrics.isnan().all(-1).tolist() == [
        False,
        True,
        True,
        True,
        False,
        False,
    ]


def test_without_a_divergence_the_teachers_gradient_is_zero() -> None:
    s, t = logits(2, 100, torch.float32), logits(2, 100, torch.bfloat16)
    for metrics in (False, True):
        compare(s, t, torch.tensor([3, 99]), spec(100, kd_weight=0.0), metrics=metrics)
        compare(s, t, None, spec(100, kd_weight=0.0, z_loss=0.0), metrics=metrics)


@pytest.mark.parametrize("beta", [0.1, 0.9])
@pytest.mark.parametrize("divergence", ["skew_forward_kl", "skew_reverse_kl"])
def test_skews_of_near_models(divergence: str, beta: float) -> None:
    """The rounding of p must not be of first order in the value, which is of second."""
    s = logits(2, 3000, torch.float32)
    t = s + 0.05 * torch.randn_like(s)
    temperatures = dict(temperature=20.0, teacher_temperature=20.0)
    arithmetic = spec(3000, (divergence, {"beta": beta}), ce_weight=0.0, z_loss=0.0, **temperatures)
    for metrics in (False, True):
        call = call_of(s, t, None, arithmetic, metrics=metrics)
        KERNEL.rows(call)
        torch.testing.assert_close(call.row_loss.double(), expected_of(call)[0], rtol=2e-2, atol=0.0)


@parameters
def test_equal_rows_have_no_divergence(divergence: Named) -> None:
    for dtype, metrics in itertools.product(DTYPES, (False, True)):
        s = logits(2, 5000, dtype)
        temperatures = dict(temperature=1.3, teacher_temperature=1.3)
        arithmetic = spec(5000, divergence, ce_weight=0.0, z_loss=0.0, **temperatures)
        call = call_of(s, s.clone(), torch.tensor([7, 4000]), arithmetic, metrics=metrics)
        KERNEL.rows(call)
        assert not any(x.any() for x in results(call)[:3])
        assert call.metrics is None or (not call.metrics[:, 0].any() and call.metrics[:, 4].all())


@named
def test_the_first_of_equal_logits_agrees(divergence: Named) -> None:
    s, t = torch.zeros(1, 4, 300), torch.zeros(1, 4, 300)
    s[0, :, [40, 250]] = 1.0
    t[0, torch.arange(4), torch.tensor([40, 250, 40, 250])] = 2.0
    call = call_of(s, t, torch.tensor([40, 40, 250, 250]), spec(300, divergence), metrics=True)
    KERNEL.rows(call)
    assert call.metrics is not None and call.metrics[:, 4].tolist() == [1.0, 0.0, 1.0, 0.0]


def test_a_confident_model_keeps_its_digits() -> None:
    s, t, labels = logits(3, 600, torch.float32), logits(3, 600, torch.float32), torch.tensor([5, 70, 599])
    s[0, [0, 1, 2], labels] += torch.tensor([6.0, 12.0, 18.0])
    for name, metrics in itertools.product(("forward_kl", "decoupled"), (False, True)):
        arithmetic = spec(600, (name, {}), kd_weight=1e-30, ce_weight=1.0, label_smoothing=0.0, z_loss=0.0)
        call = call_of(s, t, labels, arithmetic, metrics=metrics)
        KERNEL.rows(call)
        for ours, exact in zip(results(call)[:2], expected_of(call), strict=False):
            torch.testing.assert_close(ours.double(), exact, rtol=5e-5, atol=0.0)
