"""Test the drop-in for Liger's fused linear JSD, against its definition and against the package itself.

Liger's kernels need a GPU, or Triton's interpreter in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.same_loss import assert_alike
from torch import Tensor

from fastkd.errors import Unsupported
from fastkd.integrations.liger import LigerFusedLinearJSD

LABELS = torch.tensor([3, -100, 2, 70, -100])  # one lies outside the vocabulary: only the mask counts
BETAS = [0.0, 0.3, 1.0]


def plain(hs: Tensor, ws: Tensor, ht: Tensor, wt: Tensor, labels: Tensor | None, beta: float) -> Tensor:
    q = F.log_softmax(hs @ ws.T / 1.7, -1)
    p = F.log_softmax(ht.detach() @ wt.detach().T / 1.7, -1)
    if beta in (0, 1):
        loss = p.exp() * (p - q) if beta == 0 else q.exp() * (q - p)
    else:
        m = torch.logaddexp(p + torch.tensor(beta).log(), q + torch.tensor(1 - beta).log())
        loss = beta * p.exp() * (p - m) + (1 - beta) * q.exp() * (q - m)
    valid = torch.ones(len(hs), dtype=torch.bool) if labels is None else labels != -100
    return loss.sum(-1)[valid].mean()


def inputs() -> list[Tensor]:
    return [torch.randn(5, 8), torch.randn(33, 8), torch.randn(5, 12), torch.randn(33, 12)]


@pytest.mark.parametrize("labels", [None, LABELS], ids=["all", "masked"])
@pytest.mark.parametrize("beta", BETAS)
def test_definition(beta: float, labels: Tensor | None) -> None:
    ours = LigerFusedLinearJSD(jsd_beta=beta, temperature=1.7)
    assert_alike(lambda *x: ours(*x, labels), lambda *x: plain(*x, labels, beta), inputs())


def test_no_valid_token() -> None:
    hs, ws, ht, wt = inputs()
    loss = LigerFusedLinearJSD()(hs.requires_grad_(), ws, ht, wt, torch.full((5,), -100))
    loss.backward()
    assert loss.item() == 0
    assert hs.grad is not None and not hs.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_dtype_of_sums_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(Unsupported, match=r"fastkd\.integrations\.liger does not take accum_dtype"):
        LigerFusedLinearJSD(accum_dtype=dtype)


INTERPRETED = """
import torch
from support.same_loss import assert_alike
from test_liger import BETAS, LABELS, inputs
from liger_kernel.transformers import LigerFusedLinearJSD as Theirs
from fastkd.integrations.liger import LigerFusedLinearJSD as Ours

torch.manual_seed(0)
for beta in BETAS:
    for labels in (None, LABELS):
        for dtype in (None, torch.float32):
            options = dict(jsd_beta=beta, temperature=1.7, accum_dtype=dtype)
            ours, theirs = Ours(**options), Theirs(**options)
            assert_alike(lambda *x: ours(*x, labels), lambda *x: theirs(*x, labels), inputs())
"""


@pytest.mark.slow
@pytest.mark.skipif(not (find_spec("liger_kernel") and find_spec("triton")), reason="needs liger-kernel")
def test_equals_the_package() -> None:
    here = Path(__file__).resolve().parent
    path = ":".join([str(here), str(here.parent), *filter(None, sys.path)])
    command = ["env", "TRITON_INTERPRET=1", f"PYTHONPATH={path}", sys.executable, "-c", INTERPRETED]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
