"""Cases of the CUDA kernels by themselves: logits that are far from 0, far apart, infinite or NaN.

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
    Named,
    assert_near,
    call_of,
    compare,
    expected_of,
    logits,
    named,
    results,
    spec,
    within_float32,
)
from support.kernel_shards import in_shards

from fastkd.backends.native import forced_cuda_kernel


@named
def test_distant_blocks(divergence: Named) -> None:
    """Each block of a cluster has a different row maximum, and one has only -inf."""
    for dtype in DTYPES:
        s, t = logits(2, 4096, dtype, scale=1.0), logits(2, 4096, dtype, scale=1.0)
        s[..., 1024:2048] -= 40
        t[..., 2048:3072] += 25
        s[..., 3584:] = t[..., 3584:] = -float("inf")
        changes = dict(label_smoothing=0.0, temperature=2.0, teacher_temperature=2.0)
        with forced_cuda_kernel("cluster", 8):
            compare(s, t, torch.tensor([5, 2500]), spec(4096, divergence, **changes))


@named
def test_largest_float16(divergence: Named) -> None:
    """The largest logits are so large that no float16 exceeds them by the margin of the maxima."""
    for dtype in (torch.float16, torch.bfloat16):
        s, t = ((65_504 - 64 * torch.randint(0, 100, (1, 3, 2050))).to(dtype) for _ in range(2))
        changes = dict(label_smoothing=0.0, temperature=1000.0, teacher_temperature=1000.0, ce_weight=0.0)
        for blocks in (1, 4):
            with forced_cuda_kernel("cluster", blocks):
                compare(s, t, torch.tensor([5, 0, 2049]), spec(2050, divergence, **changes))


@named
@pytest.mark.parametrize("kernel, metrics", list(itertools.product(("stream", "cluster"), (False, True))))
def test_far_rows(divergence: Named, kernel: str, metrics: bool) -> None:
    """Logits far from 0, or far from the other side's.

    They are on a grid that float32 represents exactly, so that float64 sees the same distributions.
    """
    lowest = torch.finfo(torch.float32).min
    for columns in (7, 1100):
        s, t = ((torch.randn(1, 7, columns) * 2).round() * 64 for _ in range(2))
        s[:, 0] += 1e9
        t[:, 1] -= 1e9
        s[:, 2:], t[:, 2:] = s[:, 2:] / 64, t[:, 2:] / 64
        s[:, 2] += 100
        t[:, 3] -= 1000
        s[:, 4], t[:, 5] = lowest, lowest
        s[:, 6, 4:6] = t[:, 6, 4:6] = lowest
        for row, temperature in itertools.product(range(7), (1.0, 0.7)):
            changes = dict(temperature=temperature, teacher_temperature=temperature, label_smoothing=0.0)
            changes["z_loss"] = 0.0 if row in (4, 5) else 1e-20  # else its z_loss overflows float32
            cut, labels = slice(row, row + 1), torch.tensor([row % columns])
            largest = 600 / temperature if row < 2 else 10.0
            arithmetic = spec(columns, divergence, **changes)
            with forced_cuda_kernel(kernel, 2 if kernel == "cluster" else None):
                compare(s[:, cut], t[:, cut], labels, arithmetic, metrics=metrics, largest=largest)
            if kernel == "stream":
                call = call_of(s[:, cut], t[:, cut], labels, arithmetic, metrics=metrics)
                found = in_shards(call, [0, 3, columns - 3])
                assert_near(found, expected_of(call), arithmetic, largest)


@named
def test_nan_affects_only_its_row(divergence: Named) -> None:
    s, t = logits(4, 300, torch.float32), logits(4, 300, torch.float32)
    s[0, 0, 0] = t[0, 1, 299] = float("nan")
    s[0, 2, :200] = float("nan")
    compare(s, t, torch.tensor([5, 6, 299, 8]), spec(300, divergence))


@named
def test_minus_infinity(divergence: Named) -> None:
    s, t = logits(3, 2000, torch.float32), logits(3, 2000, torch.float32)
    s[..., :1700] = t[..., :1700] = -float("inf")
    t[0, 1, 1900:] = -float("inf")  # only the teacher
    without = dict(label_smoothing=0.0)
    compare(s[:, :2], t[:, :2], torch.tensor([1800, 1801]), spec(2000, divergence, **without), metrics=True)


@named
@pytest.mark.parametrize("shift, temperature", [(1e3, 1.0), (-1e3, 2.0), (30.0, 0.05), (0.0, 100.0)])
def test_distant_rows_and_extreme_temperatures(divergence: Named, shift: float, temperature: float) -> None:
    s, t, labels = logits(2, 500, torch.float32), logits(2, 500, torch.float32), torch.tensor([1, 2])
    s += shift
    changes = dict(temperature=temperature, teacher_temperature=temperature, label_smoothing=0.0, z_loss=0.0)
    call = call_of(s, t, labels, spec(500, divergence, **changes))
    KERNEL.rows(call)
    found, expected = within_float32(results(call), expected_of(call), call.spec)
    torch.testing.assert_close(found[0].double(), expected[0], rtol=2e-4, atol=1e-5)
    # The rounding of log-ratios, which are as large as the logits' difference over T. A gradient divides it
    # by T once more.
    noise = 2e-7 * float((s - t).abs().amax()) / temperature**2
    for ours, exact in zip(found[1:], expected[1:], strict=True):
        assert (ours.double() - exact).norm() <= 2e-4 * exact.norm() + noise


@pytest.mark.parametrize("divergence", [d for d in NAMED + OTHERS if d[0] in DISTANT], ids=str)
@pytest.mark.parametrize("metrics", [False, True])
def test_rows_without_common_ground(divergence: Named, metrics: bool) -> None:
    """Each side's likely columns are 400 nats lower on the other side, so min(p, q) underflows float32."""
    s, t = logits(2, 900, torch.float32, scale=1.0), logits(2, 900, torch.float32, scale=1.0)
    s[..., :450] += 400
    t[..., 450:] += 400
    for temperature in (1.0, 2.0):
        changes = dict(temperature=temperature, teacher_temperature=temperature, ce_weight=0.0, z_loss=0.0)
        call = call_of(s, t, None, spec(900, divergence, **changes), metrics=metrics)
        KERNEL.rows(call)
        assert call.row_loss.isfinite().all()
        for ours, exact in zip(results(call), expected_of(call), strict=True):
            torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-5, equal_nan=True)
