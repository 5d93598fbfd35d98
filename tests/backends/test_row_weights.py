"""Test that the weights of a reduction are the same from the compiled function and from torch's operators."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastkd.backends import native
from fastkd.losses import reduction as reductions
from fastkd.losses.reduction import row_scale

IGNORED = -7
SHAPES = [(), (0,), (1,), (7,), (5, 9)]


class Watching(TorchDispatchMode):
    """Sees every operator, so that nothing may bypass them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def both_ways(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights from the compiled function, and those from torch's operators."""
    results: list[torch.Tensor | None] = []

    def noted(*inner: Any) -> torch.Tensor | None:
        results.append(native.row_weights(*inner))
        return results[-1]

    monkeypatch.setattr(reductions, "row_weights", noted)
    found = row_scale(*arguments)
    with Watching():
        expected = row_scale(*arguments)
    assert results[0] is found, "the compiled function was not used"
    assert results[1] is None
    assert found.dtype == expected.dtype and found.shape == expected.shape
    return found, expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_mean(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], share: float, dtype: torch.dtype
) -> None:
    """The weights of a mean over labels are equal to the last bit, whatever the labels' strides."""
    labels = torch.randint(0, 9, shape).where(torch.rand(shape) >= share, IGNORED)
    student = torch.zeros(*shape, 9)
    for given in (labels, labels.t() if labels.dim() == 2 else labels):
        logits = student if given is labels else student.transpose(0, 1)
        found, expected = both_ways(monkeypatch, "mean", given, IGNORED, None, None, logits, dtype)
        assert torch.equal(found, expected)
        assert float(found.sum()) == pytest.approx(float((given != IGNORED).any()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean", "none"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_reduction(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], reduction: str, dtype: torch.dtype
) -> None:
    student, labels = torch.zeros(*shape, 9), torch.randint(0, 2, shape)
    weights = torch.randn(shape).where(torch.rand(shape) > 0.2, 0.0)
    given = [None, weights, weights.double(), weights.bfloat16(), weights.half(), weights > 0]
    given += [weights.long(), weights.int(), weights.short()]
    items: list[Any] = [None]
    if reduction == "mean":
        items += [0, 3, *(torch.tensor(5, dtype=x) for x in (torch.int64, torch.float32, torch.int16))]
        items += [torch.tensor(0), torch.tensor(2.5, dtype=torch.bfloat16)]
    for targets, w, n in itertools.product((None, labels), given, items):
        found, expected = both_ways(monkeypatch, reduction, targets, 1, w, n, student, dtype)
        close = {"rtol": 1e-6, "atol": 1e-6 * float(expected.abs().sum() + 1)}
        torch.testing.assert_close(found, expected, **close)


@pytest.mark.parametrize("count", [1, 5000])
def test_a_sum_of_many_weights(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    weights = torch.rand(count)
    found, _ = both_ways(
        monkeypatch, "mean", None, IGNORED, weights, None, torch.zeros(count, 3), torch.float32
    )
    expected = weights.double() / weights.double().sum()
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
