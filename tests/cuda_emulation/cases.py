"""Cases for the CUDA kernels alone: ``test_cuda_emulation.py`` runs them on the emulated ones."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from fastkd.backends.native import forced_isa
from fastkd.backends.registry import REGISTRY
from fastkd.spec import DIVERGENCES, LossSpec

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ULP = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}


def spec(vocab: int, divergence: str = "forward_kl", **changes: float) -> LossSpec:
    fields = dict(divergence=divergence, beta=0.3, temperature=2.0, teacher_temperature=2.0, kd_weight=0.7)
    fields |= dict(ce_weight=0.4, label_smoothing=0.1, z_loss=1e-3, ignore_index=-100, vocab_size=vocab)
    return LossSpec(**(fields | changes))


def run(
    name: str,
    s: Tensor,
    t: Tensor,
    labels: Tensor | None,
    arithmetic: LossSpec,
    grads: tuple[Tensor | None, Tensor | None],
) -> tuple[Tensor, Tensor, Tensor]:
    """(row losses, student's gradient, teacher's gradient) of one backend, written to ``grads``."""
    rows = s.shape[0] * s.shape[1]
    scales = torch.linspace(0.5, 2.0, rows), torch.linspace(2.0, 0.5, rows)
    losses = torch.full((rows,), 7.0)
    if name == "reference":
        scales, losses = (scales[0].double(), scales[1].double()), losses.double()
    REGISTRY[name].dense_rows(s, t, labels, *scales, arithmetic, losses, *grads)
    return losses, grads[0], grads[1]


def compare(
    s: Tensor, t: Tensor, labels: Tensor | None, arithmetic: LossSpec, in_place: bool = False
) -> None:
    """The kernel, with its threads taking turns in both orders, against float64."""
    wide = s.double(), t.double()
    expected = run("reference", *wide, labels, arithmetic, tuple(torch.empty_like(x) for x in wide))
    results = []
    for isa in ("emulated_cuda", "emulated_cuda_backwards"):
        grads = (s, t) if in_place else (torch.full_like(s, 7.0), torch.full_like(t, 7.0))
        originals = s.clone(), t.clone()
        with forced_isa(isa):
            losses, *by = run("native", s, t, labels, arithmetic, grads)
        results.append([losses, by[0].clone(), by[1].clone()])
        s.copy_(originals[0]), t.copy_(originals[1])
    for forwards, backwards, exact in zip(*results, expected, strict=True):
        assert forwards.equal(backwards) or (forwards.isnan() | (forwards == backwards)).all()
        bound = ULP[forwards.dtype] * exact[exact.isfinite()].abs().amax() + 5e-7
        torch.testing.assert_close(forwards.double(), exact, atol=float(bound), rtol=2e-5, equal_nan=True)


def logits(rows: int, columns: int, dtype: torch.dtype, offset: int = 0, scale: float = 3.0) -> Tensor:
    """(1, rows, columns), ``offset`` elements past an aligned address."""
    storage = torch.empty(rows * columns + 16, dtype=dtype)
    return (
        storage[offset : offset + rows * columns]
        .view(1, rows, columns)
        .copy_(torch.randn(1, rows, columns) * scale)
    )


@pytest.mark.parametrize("student, teacher", list(itertools.product(DTYPES, DTYPES)), ids=str)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("in_place", [False, True])
def test_dtypes_alignments_and_padding(
    student: torch.dtype, teacher: torch.dtype, divergence: str, in_place: bool
) -> None:
    for columns, offsets in ((1, (0, 0)), (9, (3, 3)), (130, (1, 5)), (1001, (0, 0)), (1000, (2, 2))):
        s = logits(3, columns, student, offsets[0])
        t = logits(3, columns + 8, teacher, offsets[1])
        s[..., columns - columns // 10 :] = float("nan")  # padding
        t[..., columns - columns // 10 :] = float("nan")
        vocab = columns - columns // 10
        compare(s, t, torch.tensor([0, vocab - 1, vocab // 2]), spec(vocab, divergence), in_place)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_full_blocks(divergence: str) -> None:
    s, t = logits(1, 20_003, torch.bfloat16), logits(1, 20_003, torch.bfloat16)
    compare(s, t, torch.tensor([17_000]), spec(20_003, divergence, temperature=1.0, teacher_temperature=1.5))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_strides(divergence: str) -> None:
    s = torch.randn(77, 3, 2).permute(2, 1, 0) * 3  # neighbouring columns lie 6 elements apart
    t = torch.randn(2, 4, 90)[:, :-1]
    compare(s, t, torch.randint(0, 70, (6,)), spec(70, divergence))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_labels_outside_the_vocabulary(divergence: str) -> None:
    s, t = logits(6, 40, torch.float32), logits(6, 40, torch.float32)
    s[0, 4] = t[0, 4] = float("nan")  # ignored
    compare(s, t, torch.tensor([3, 40, -1, 2**40, -100, 39]), spec(40, divergence))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_nan_spoils_its_row_alone(divergence: str) -> None:
    s, t = logits(4, 300, torch.float32), logits(4, 300, torch.float32)
    s[0, 0, 0] = t[0, 1, 299] = float("nan")
    s[0, 2, :200] = float("nan")
    compare(s, t, torch.tensor([5, 6, 299, 8]), spec(300, divergence))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_minus_infinity(divergence: str) -> None:
    s, t = logits(3, 2000, torch.float32), logits(3, 2000, torch.float32)
    s[..., :1700] = t[..., :1700] = -float("inf")
    t[0, 1, 1900:] = -float("inf")  # the teacher alone
    compare(s[:, :2], t[:, :2], torch.tensor([1800, 1801]), spec(2000, divergence, label_smoothing=0.0))


def test_cross_entropy_alone_clears_the_teachers_gradient() -> None:
    s, t = logits(2, 100, torch.float32), logits(2, 100, torch.bfloat16)
    compare(s, t, torch.tensor([3, 99]), spec(100, kd_weight=0.0))
    compare(s, t, None, spec(100, kd_weight=0.0, z_loss=0.0))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("shift, temperature", [(1e3, 1.0), (-1e3, 2.0), (30.0, 0.05), (0.0, 100.0)])
def test_distant_rows_and_extreme_temperatures(divergence: str, shift: float, temperature: float) -> None:
    s, t, labels = logits(2, 500, torch.float32), logits(2, 500, torch.float32), torch.tensor([1, 2])
    s += shift
    changes = dict(temperature=temperature, teacher_temperature=temperature, label_smoothing=0.0, z_loss=0.0)
    arithmetic = spec(500, divergence, **changes)
    wide = s.double(), t.double()
    expected = run("reference", *wide, labels, arithmetic, (wide[0].clone(), wide[1].clone()))
    actual = run("native", s, t, labels, arithmetic, (s.clone(), t.clone()))
    torch.testing.assert_close(actual[0].double(), expected[0], rtol=2e-4, atol=1e-5)
    # Rounding of log-ratios, which are as large as the logits' difference over T, with a gradient's 1 / T.
    noise = 2e-7 * float((s - t).abs().amax()) / temperature**2
    for ours, exact in zip(actual[1:], expected[1:], strict=True):
        assert (ours.double() - exact).norm() <= 2e-4 * exact.norm() + noise


def test_equal_rows_have_no_divergence() -> None:
    for dtype, divergence in itertools.product(DTYPES, DIVERGENCES):
        s = logits(2, 5000, dtype)
        arithmetic = spec(
            5000, divergence, ce_weight=0.0, z_loss=0.0, temperature=1.3, teacher_temperature=1.3
        )
        losses, *by = run("native", s, s.clone(), None, arithmetic, (s.clone(), s.clone()))
        assert not losses.any() and not by[0].any() and not by[1].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scale_rows(dtype: torch.dtype) -> None:
    for rows, columns, offset in ((3, 1, 0), (2, 777, 1), (2, 20_001, 0)):
        grad = logits(rows, columns, dtype, offset)[0]
        factor = torch.tensor([1.0, -0.3, 2.5])[:rows]
        expected = (grad.float() * factor[:, None]).to(dtype)
        out = torch.full_like(grad, 7.0)
        REGISTRY["native"].scale_rows(grad, factor, out)
        assert out.equal(expected)
        REGISTRY["native"].scale_rows(grad, factor, grad)
        assert grad.equal(expected)
