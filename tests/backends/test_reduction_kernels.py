"""Test that a backend's kernels give the weights and the totals of a reduction that torch's give."""

from __future__ import annotations

import itertools
from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastkd.backends.registry import REGISTRY
from fastkd.losses.reduction import row_scale, totals
from fastkd.spec import METRICS

IGNORED = -7
SHAPES = [(), (0,), (1,), (7,), (5, 9)]


class Watching(TorchDispatchMode):
    """Sees every operator, so that nothing may bypass them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


# A backend and the dtype of the weights.
KERNELS = [("native", torch.float32), ("native", torch.float64)]
KERNELS += [pytest.param("triton", torch.float32, marks=pytest.mark.triton_interpret)]
kernels = pytest.mark.parametrize(("backend", "dtype"), KERNELS, ids=str)


def both_ways(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights from the backend's kernel, and those from torch's operators."""
    backend = REGISTRY[arguments[-1]]
    with mock.patch.object(backend, "row_weights", wraps=backend.row_weights) as kernel:
        found = row_scale(*arguments)
        assert kernel.call_count == 1, "the backend was not asked"
        with Watching():
            expected = row_scale(*arguments)
        assert kernel.call_count == 1, "the operators' watch did not see everything"
    assert found.dtype == expected.dtype and found.shape == expected.shape
    return found, expected


@kernels
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_mean(shape: tuple[int, ...], share: float, backend: str, dtype: torch.dtype) -> None:
    """The weights of a mean over labels are equal to the last bit, whatever the labels' strides."""
    labels = torch.randint(0, 9, shape).where(torch.rand(shape) >= share, IGNORED)
    student = torch.zeros(*shape, 9)
    for given in (labels, labels.t() if labels.dim() == 2 else labels):
        logits = student if given is labels else student.transpose(0, 1)
        found, expected = both_ways("mean", given, IGNORED, None, None, logits, dtype, backend)
        assert torch.equal(found, expected)
        assert float(found.sum()) == pytest.approx(float((given != IGNORED).any()))


@kernels
@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean", "none"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_reduction(shape: tuple[int, ...], reduction: str, backend: str, dtype: torch.dtype) -> None:
    student, labels = torch.zeros(*shape, 9), torch.randint(0, 2, shape)
    weights = torch.randn(shape).where(torch.rand(shape) > 0.2, 0.0)
    given = [None, weights, weights.double(), weights.bfloat16(), weights.half(), weights > 0]
    given += [weights.long(), weights.int(), weights.short()]
    items: list[Any] = [None]
    if reduction == "mean":
        items += [0, 3, *(torch.tensor(5, dtype=x) for x in (torch.int64, torch.float32, torch.int16))]
        items += [torch.tensor(0), torch.tensor(2.5, dtype=torch.bfloat16)]
    for targets, w, n in itertools.product((None, labels), given, items):
        found, expected = both_ways(reduction, targets, 1, w, n, student, dtype, backend)
        close = {"rtol": 1e-6, "atol": 1e-6 * float(expected.abs().sum() + 1)}
        torch.testing.assert_close(found, expected, **close)


@kernels
@pytest.mark.parametrize("count", [1, 5000])
def test_a_sum_of_many_weights(count: int, backend: str, dtype: torch.dtype) -> None:
    weights = torch.rand(count)
    found, _ = both_ways("mean", None, IGNORED, weights, None, torch.zeros(count, 3), dtype, backend)
    expected = weights.double() / weights.double().sum()
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)


@kernels
@pytest.mark.parametrize("rows", [1, 7, 2049])
def test_totals(rows: int, backend: str, dtype: torch.dtype) -> None:
    """The sum and the means are those of plain torch, where NaN rows count and rows of weight 0 do not."""
    scale = torch.rand(rows, dtype=dtype).where(torch.rand(rows) > 0.3, 0.0)
    scale[0] = 0.5
    row_loss, metrics = torch.randn(rows, dtype=dtype) * scale, torch.randn(rows, len(METRICS), dtype=dtype)
    metrics[scale == 0] = 0.0
    metrics[0, 1] = torch.nan
    kernel = REGISTRY[backend]
    for loss, measured in ((row_loss, metrics), (row_loss, None), (None, metrics)):
        expected = totals(loss, measured, scale, "reference")
        for found in (kernel.totals(loss, measured, scale), totals(loss, measured, scale, backend)):
            assert found is not None
            for ours, theirs in zip(found, expected, strict=True):
                assert (ours is None) == (theirs is None)
                if ours is not None:
                    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, equal_nan=True)
    _, means = totals(None, torch.zeros_like(metrics), torch.zeros_like(scale), backend)
    assert means is not None and means.tolist() == [0.0] * (len(METRICS) + 1)
