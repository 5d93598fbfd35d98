"""Cases of the CUDA kernels by themselves: phases, which shards of the vocabulary and sparse teachers need.

``test_cuda_emulation.py`` runs them on the emulated kernels.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from support.kernel_calls import (
    DISTANT,
    DTYPES,
    KERNEL,
    NAMED,
    OTHERS,
    POWERS,
    Named,
    assert_near,
    call_of,
    expected_of,
    logits,
    parameters,
    results,
    spec,
)
from support.kernel_shards import in_shards

from fastkd.backends import record as records
from fastkd.backends.registry import REGISTRY


@parameters
@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (2.0, 2.0), (1.7, 0.8)], ids=str)
def test_shards(divergence: Named, temperatures: tuple[float, float]) -> None:
    s, t = logits(4, 600, torch.float32), logits(4, 600, torch.float32)
    s[0, 2, :290] -= 50  # maxima far apart
    t[0, 2, 350:] -= 30
    labels = torch.tensor([0, 599, 300, -100])
    both = dict(zip(("temperature", "teacher_temperature"), temperatures, strict=True))
    for metrics in (False, True):
        call = call_of(s, t, labels, spec(600, divergence, **both), metrics=metrics)
        expected = expected_of(call)
        for widths in ([600], [280, 320], [0, 37, 563]):
            assert_near(in_shards(call, widths), expected, call.spec)


@pytest.mark.parametrize("divergence", [d for d in NAMED + OTHERS if d[0] in (*POWERS, *DISTANT)], ids=str)
def test_shards_without_common_ground(divergence: Named) -> None:
    s, t = logits(2, 800, torch.float32, scale=1.0), logits(2, 800, torch.float32, scale=1.0)
    s[..., :400] += 90
    t[..., 400:] += 90
    call = call_of(s, t, None, spec(800, divergence, ce_weight=0.0, z_loss=0.0))
    for ours, exact in zip(in_shards(call, [300, 500]), expected_of(call), strict=True):
        assert (ours.double() - exact).norm() <= 1e-4 * exact.norm() + 1e-5


def test_shards_of_masked_columns() -> None:
    for divergence in NAMED:
        s, t = logits(2, 500, torch.float32), logits(2, 500, torch.float32)
        s[..., :200] = t[..., :200] = -float("inf")
        call = call_of(
            s, t, torch.tensor([210, 480]), spec(500, divergence, label_smoothing=0.0), metrics=True
        )
        assert_near(in_shards(call, [200, 300]), expected_of(call), call.spec)


def test_a_confident_models_shards() -> None:
    s, t, labels = logits(2, 600, torch.float32), logits(2, 600, torch.float32), torch.tensor([5, 599])
    s[0, [0, 1], labels] += 30
    arithmetic = spec(600, kd_weight=0.0, ce_weight=1.0, label_smoothing=0.0, z_loss=0.0)
    call = call_of(s, t, labels, arithmetic)
    for ours, exact in zip(in_shards(call, [300, 300])[:2], expected_of(call), strict=False):
        torch.testing.assert_close(ours.double(), exact, rtol=5e-5, atol=1e-20)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("metrics", [False, True])
def test_off_support(dtype: torch.dtype, metrics: bool) -> None:
    """Off a sparse teacher's columns the gradient is a coefficient times q."""
    for temperature, columns in itertools.product((1.0, 2.0, 0.7), (9, 1003)):
        s, t = logits(4, columns, dtype), logits(4, columns, dtype)
        arithmetic = spec(columns, ("off_support", {}), temperature=temperature)
        call = call_of(s, t, torch.tensor([3, columns - 1, 0, -100]), arithmetic, metrics=metrics)
        record = torch.zeros(4, len(records.COLUMNS), dtype=torch.float64)
        coefficient = torch.tensor([0.3, -1.0, 0.0, 5.0])
        KERNEL.launch(call, "statistics", record)
        assert not record[3].any()
        KERNEL.launch(call, "finish", record, coefficient)
        exact = call_of(s.double(), t.double(), call.labels, arithmetic, metrics=metrics)
        REGISTRY["reference"].launch(exact, "finish", record, coefficient.double())  # type: ignore[attr-defined]
        assert_near(results(call), results(exact), arithmetic)
        lse = record[:3, 0] / temperature + record[:3, 2].log()
        torch.testing.assert_close(
            lse, torch.logsumexp(s[0, :3].double() / temperature, -1), rtol=1e-6, atol=1e-6
        )
