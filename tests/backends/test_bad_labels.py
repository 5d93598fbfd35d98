"""Test what a backend does with a label outside the vocabulary, which on a GPU nothing checks before it.

The native backend's GPU kernels have this test in ``native/cuda_emulation``.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.kernel_calls import Named, call_of, named, spec

from fastkd.backends.registry import REGISTRY

BACKENDS = ["reference", pytest.param("triton", marks=pytest.mark.triton_interpret)]


@pytest.mark.parametrize("backend", BACKENDS)
@named
@pytest.mark.parametrize("metrics", [False, True])
def test_rows_with_bad_labels(backend: str, divergence: Named, metrics: bool) -> None:
    """A row with a bad label is NaN, unless its weight is 0 and it is not read."""
    s, t = torch.randn(1, 6, 40), torch.randn(1, 6, 40)
    labels = torch.tensor([3, -1, 40, 2**40, -100, 39])
    scale = torch.tensor([1.0, 0.0, 0.5, 2.0, 1.0, 0.0])
    call = call_of(s, t, labels, spec(40, divergence), metrics=metrics)
    call = replace(call, loss_scale=scale, grad_scale=scale)
    REGISTRY[backend].rows(call)
    assert call.grad_student is not None and call.grad_teacher is not None
    for found in (call.row_loss[:, None], call.grad_student[0], call.grad_teacher[0]):
        assert found.isnan().all(-1).tolist() == [False, False, True, True, False, False]
        assert torch.isfinite(found[0]).all()
        assert (found[[1, 4, 5]] == 0).all(), "a row that is not read has results"
