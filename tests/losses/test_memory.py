"""Measure how much a call adds to the peak of resident memory, each call in a process of its own."""

from __future__ import annotations

import sys

import pytest
from support.peak import peak_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kd_loss_adds_its_gradient_and_nothing_else(dtype: str) -> None:
    added = peak_of(f"""
        s = torch.randn(256, 100_000).to(torch.{dtype}).requires_grad_()
        t = torch.randn(256, 100_000).to(torch.{dtype})
        y = torch.randint(0, 100_000, (256,))
        def call():
            (0.5 * fastkd.kd_loss(s, t, y, kd_ratio=0.5, temperature=2.0)).backward()
            s.grad = None
        print(added(call))
    """)
    gradient = 256 * 100_000 * (4 if dtype == "float32" else 2) / 2**20
    assert 0.9 * gradient < added < 1.0 * gradient + 12


def test_linear_kd_loss_never_holds_the_logits() -> None:
    added = peak_of("""
        torch.set_num_threads(2)
        h, w = torch.randn(2048, 16, requires_grad=True), torch.randn(60_000, 16, requires_grad=True)
        ht, wt = torch.randn(2048, 16), torch.randn(60_000, 16)
        def call():
            fastkd.linear_kd_loss(h, w, fastkd.HiddenTeacher(ht, wt), chunk_size=64).backward()
            h.grad = w.grad = None
        print(added(call))
    """)
    one_logits_tensor = 2048 * 60_000 * 4 / 2**20
    assert added < one_logits_tensor / 4
