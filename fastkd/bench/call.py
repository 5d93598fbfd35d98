"""Measures the time of a small call, which Python and autograd dominate: ``python -m fastkd.bench.call``.

One thread, (1, 1,000) logits in float32: KL at T = 2 with and without cross-entropy, beside plain torch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

import fastkd

CALLS, ROUNDS = 400, 25


def microseconds(call: Callable[[], object]) -> tuple[float, float]:
    """The least and the median time of a call, over rounds of many calls each."""
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for _ in range(CALLS):
            call()
        times.append((time.perf_counter() - begin) / CALLS * 1e6)
    return min(times), statistics.median(times)


def main() -> None:
    torch.set_num_threads(1)
    s, t, labels = torch.randn(1, 1000), torch.randn(1, 1000), torch.tensor([3])
    x = s.clone().requires_grad_()

    def backward(loss: torch.Tensor) -> None:
        x.grad = None
        loss.backward()

    def plain(logits: torch.Tensor) -> torch.Tensor:
        kd = F.kl_div(F.log_softmax(logits / 2, -1), F.softmax(t / 2, -1), reduction="batchmean")
        return 2 * kd + 0.5 * F.cross_entropy(logits, labels)

    mixed: dict[str, Any] = {"kd_ratio": 0.5, "temperature": 2.0}
    rows: dict[str, Callable[[], object]] = {
        "fastkd, KL + CE, forward and backward": lambda: backward(fastkd.kd_loss(x, t, labels, **mixed)),
        "fastkd, KL, forward and backward": lambda: backward(fastkd.kd_loss(x, t, temperature=2.0)),
        "fastkd, KL + CE, no gradients": lambda: fastkd.kd_loss(s, t, labels, **mixed),
        "fastkd, KL, no gradients": lambda: fastkd.kd_loss(s, t, temperature=2.0),
        "plain torch, KL + CE, forward and backward": lambda: backward(plain(x)),
        "plain torch, KL + CE, no gradients": lambda: plain(s),
    }
    print("microseconds a call: least, median")
    for name, call in rows.items():
        least, median = microseconds(call)
        print(f"{name:44}{least:8.0f}{median:8.0f}")


if __name__ == "__main__":
    main()
