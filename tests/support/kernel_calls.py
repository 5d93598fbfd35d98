"""Calls of a kernel by itself, with odd layouts and parameters, and their comparison with float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from fastkd.backends.base import Call
from fastkd.backends.native import NativeBackend, forced_isa
from fastkd.backends.registry import REGISTRY
from fastkd.divergences import DIVERGENCES
from fastkd.spec import METRICS, LossSpec

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ULP = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}
SHARES = ("jsd", "skew_forward_kl", "skew_reverse_kl")
POWERS = tuple(name for name in DIVERGENCES if DIVERGENCES[name].cross)
# Divergences that stay finite even if student and teacher are nearly disjoint.
DISTANT = ("renyi", "log_acceptance")
# A divergence's name and its parameters.
Named = tuple[str, dict[str, float]]
NAMED: list[Named] = [(name, {}) for name in DIVERGENCES]
OTHERS: list[Named] = [("alpha", {"alpha": a}) for a in (-0.5, 0.5, 2.0)]
OTHERS += [("renyi", {"alpha": a}) for a in (0.5, 2.0)]
OTHERS += [("alpha_beta", {"alpha": a, "beta": b}) for a, b in ((0.2, 0.7), (-0.5, 2.0))]
OTHERS += [(name, {"beta": b}) for name, b in itertools.product((*SHARES, "decoupled"), (0.1, 0.9))]
named = pytest.mark.parametrize("divergence", NAMED, ids=lambda d: d[0])
parameters = pytest.mark.parametrize(
    "divergence", NAMED + OTHERS, ids=lambda d: "-".join(map(str, (d[0], *d[1].values())))
)
KERNEL = NativeBackend()


def spec(vocab: int, divergence: Named = NAMED[0], **changes: float) -> LossSpec:
    fields = dict(divergence=divergence[0], alpha=0.4, beta=0.3, temperature=2.0, teacher_temperature=2.0)
    fields |= dict(kd_weight=0.7, kd_metric=4.0, ce_weight=0.4, label_smoothing=0.1, z_loss=1e-3)
    return LossSpec(**(fields | dict(ignore_index=-100, vocab_size=vocab) | divergence[1] | changes))


def call_of(
    s: Tensor,
    t: Tensor,
    labels: Tensor | None,
    arithmetic: LossSpec,
    in_place: bool = False,
    metrics: bool = False,
) -> Call:
    """A call whose outputs are filled with 7, which shows what the kernel does not write."""
    rows, wide = s.shape[0] * s.shape[1], torch.float64 if s.dtype == torch.float64 else torch.float32

    def empty(*shape: int) -> Tensor:
        return torch.full(shape, 7.0, dtype=wide)

    return Call(
        s,
        t,
        labels,
        torch.linspace(0.5, 2.0, rows).to(wide),
        torch.linspace(2.0, 0.5, rows).to(wide),
        arithmetic,
        empty(rows),
        s if in_place else torch.full_like(s, 7.0),
        t if in_place else torch.full_like(t, 7.0),
        empty(rows, len(METRICS)) if metrics else None,
    )


def results(call: Call) -> list[Tensor]:
    assert call.grad_student is not None and call.grad_teacher is not None
    found = [call.row_loss, call.grad_student.clone(), call.grad_teacher.clone()]
    return found if call.metrics is None else [*found, call.metrics]


def expected_of(call: Call) -> list[Tensor]:
    """The results of the same call in float64 from the reference backend."""
    assert isinstance(call.teacher, Tensor)
    exact = call_of(
        call.student.double(), call.teacher.double(), call.labels, call.spec, False, call.metrics is not None
    )
    REGISTRY["reference"].rows(exact)
    return results(exact)


def power_of(arithmetic: LossSpec) -> float:
    """The largest power of a probability in the divergence, 0 for one without powers."""
    named = DIVERGENCES.get(arithmetic.divergence)
    if named is None or not named.cross:
        return 0.0
    return max(abs(power) for pair in named.streams(arithmetic.alpha, arithmetic.beta) for power in pair)


def within_float32(
    found: list[Tensor], expected: list[Tensor], arithmetic: LossSpec
) -> tuple[list[Tensor], list[Tensor]]:
    """Both results, for a divergence with a power of p / q without the rows whose loss exceeds float32.

    In the rows left out, the loss must be as large, and there are no gradients to compare.
    """
    if power_of(arithmetic) == 0:
        return found, expected
    kept = expected[0].isnan() | (expected[0].abs() < 1e34)
    assert (found[0][~kept] > 1e33).all()
    rows = len(kept)
    return [x.reshape(rows, -1)[kept] for x in found], [x.reshape(rows, -1)[kept] for x in expected]


def assert_near(
    found: list[Tensor], expected: list[Tensor], arithmetic: LossSpec, largest: float = 0.0
) -> None:
    """Compare results with the exact ones.

    ``largest`` is the largest log-ratio of the two sides; where two of them cancel, their rounding remains.
    """
    # The formula magnifies the difference of two sums near 1 by 1 / (a b).
    a, b = (
        arithmetic.alpha,
        arithmetic.beta if arithmetic.divergence == "alpha_beta" else 1 - arithmetic.alpha,
    )
    noise = 5e-7 + 2e-7 * largest
    # A gradient multiplies the rounding of its sum by the power of a probability in it.
    magnified = arithmetic.divergence in ("alpha", "alpha_beta")
    noise = noise / abs(a * b) if magnified else noise * max(1.0, power_of(arithmetic))
    # A power of p / q above 1 turns the rounding of a log-ratio into a relative error of a large term.
    relative = 3e-7 * largest if power_of(arithmetic) > 1 else 0.0
    for ours, exact in zip(*within_float32(found, expected, arithmetic), strict=True):
        if not exact.numel():
            continue
        bound = (ULP[ours.dtype] + relative) * exact[exact.isfinite()].abs().amax() + noise
        torch.testing.assert_close(ours.double(), exact, atol=float(bound), rtol=2e-5, equal_nan=True)


def compare(
    s: Tensor,
    t: Tensor,
    labels: Tensor | None,
    arithmetic: LossSpec,
    in_place: bool = False,
    metrics: bool = False,
    largest: float = 0.0,
) -> None:
    """Compare the kernel, with its threads in order and at random, with float64."""
    expected = expected_of(call_of(s, t, labels, arithmetic, metrics=metrics))
    found = []
    for isa in ("emulated_cuda", "emulated_cuda_shuffled"):
        originals = s.clone(), t.clone()
        call = call_of(s, t, labels, arithmetic, in_place, metrics)
        with forced_isa(isa):
            KERNEL.rows(call)
        found.append(results(call))
        s.copy_(originals[0]), t.copy_(originals[1])
    for in_order, shuffled in zip(*found, strict=True):
        assert in_order.equal(shuffled) or (in_order.isnan() | (in_order == shuffled)).all()
    assert_near(found[0], expected, arithmetic, largest)


def logits(rows: int, columns: int, dtype: torch.dtype, offset: int = 0, scale: float = 3.0) -> Tensor:
    """Logits of shape (1, rows, columns) that begin ``offset`` elements after an aligned address."""
    storage = torch.empty(rows * columns + 16, dtype=dtype)
    return (
        storage[offset : offset + rows * columns]
        .view(1, rows, columns)
        .copy_(torch.randn(1, rows, columns) * scale)
    )
