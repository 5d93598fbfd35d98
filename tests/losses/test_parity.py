"""Compare every backend with the float64 oracle: value, student gradient, teacher gradient."""

from __future__ import annotations

import pytest
import torch
from support.cases import CASES, EVERY_CASE
from support.closeness import assert_gradient, assert_value, during, enlargement, value_rounding
from support.oracle import reference_gradients
from support.targets import Target
from torch import Tensor

import fastkd
from fastkd.backends.base import Call
from fastkd.backends.registry import REGISTRY
from fastkd.divergences import DIVERGENCES
from fastkd.spec import LossSpec

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def make(
    target: Target, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, scale: float = 3.0
) -> tuple[Tensor, Tensor, Tensor]:
    s = (torch.randn(shape) * scale).to(dtype).to(target.device)
    t = (torch.randn(shape) * scale).to(dtype).to(target.device)
    labels = torch.randint(0, shape[-1], shape[:-1], device=target.device)
    return s, t, labels


def check(
    target: Target, s: Tensor, t: Tensor, labels: Tensor | None = None, factor: float = 1.0, **options: object
) -> None:
    """Compare the value and both gradients of a call with the oracle."""
    s, t = s.detach().requires_grad_(), t.detach().requires_grad_()
    loss = fastkd.kd_loss(s, t, labels, **target.options, **options)  # type: ignore[arg-type]
    expected, by_s, by_t = reference_gradients(s, t, labels, **options)
    assert loss.dtype == (torch.float64 if torch.float64 in (s.dtype, t.dtype) else torch.float32)
    assert loss.shape == expected.shape
    temperature = float(options.get("temperature", 1.0))  # type: ignore[arg-type]
    atol = 1e-6 * enlargement(options) + value_rounding(temperature, options)
    assert_value(loss.detach().cpu(), expected.cpu(), atol=atol)
    if expected.to(loss.dtype).isinf().any():
        return  # an unbounded divergence exceeds the dtype; its gradient is then infinite or NaN
    loss.sum().backward()
    assert s.grad is not None and t.grad is not None
    assert_gradient(s.grad, by_s, factor=factor)
    # At T << 1 a teacher's gradient is p times (a large log-ratio minus its mean), and these cancel.
    assert_gradient(t.grad, by_t, factor=4 * factor)


def test_every_divergence_is_here() -> None:
    assert list(dict.fromkeys(name for name, _ in CASES)) == list(DIVERGENCES)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.repeats(interpreted=6)
def test_sizes(target: Target, divergence: str) -> None:
    for vocab in (2, 1030) if target.interpreted else (2, 7, 130, 1000, 5003):
        s, t, labels = make(target, (5, vocab))
        with during(vocab=vocab):
            check(target, s, t, labels, divergence=divergence, kd_ratio=0.6, temperature=2.0)


@EVERY_CASE
def test_parameters(target: Target, divergence: str, parameters: dict[str, float]) -> None:
    s, t, labels = make(target, (4, 333), scale=2.0)
    check(target, s, t, labels, divergence=divergence, **parameters)
    options = {"temperature": 2.5, "teacher_temperature": 1.5, "kd_ratio": 0.8, "label_smoothing": 0.1}
    check(target, s, t, labels, divergence=divergence, **parameters, **options)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_dtypes(target: Target, divergence: str) -> None:
    pairs = [(student, teacher) for student in FLOATS for teacher in FLOATS]
    if target.interpreted:
        pairs = [pairs[1], pairs[6], pairs[8]]
    for student, teacher in pairs:
        if not (target.runs(student) and target.runs(teacher)):
            continue
        s, t, labels = make(target, (3, 515))
        options = {"divergence": divergence, "kd_ratio": 0.5, "temperature": 1.5}
        with during(student=student, teacher=teacher):
            check(target, s.to(student), t.to(teacher), labels, factor=1.5, **options)


@pytest.mark.parametrize("dtypes", [(torch.float64, torch.float32), (torch.float16, torch.float64)], ids=str)
def test_float64_runs_or_is_refused_with_a_reason(
    target: Target, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    s, t, _ = make(target, (2, 8))
    s, t = s.to(dtypes[0]), t.to(dtypes[1])
    if target.runs(torch.float64):
        return check(target, s, t)
    with pytest.raises(fastkd.BackendUnavailable, match="float64"):
        fastkd.kd_loss(s, t, **target.options)


# At temperatures 1 and 2 the kernels derive the cross-entropy's exponential from the divergence's. 0.05 and
# 100 are the ends of the range in use.
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.repeats(interpreted=6)
def test_temperatures(target: Target, divergence: str) -> None:
    pairs = [(t, teacher_t) for t in (0.05, 0.5, 1.0, 2.0, 3.0, 100.0) for teacher_t in (None, 1.0, 2.5)]
    for temperature, teacher_temperature in pairs[::6] if target.interpreted else pairs:
        s, t, labels = make(target, (4, 301), scale=1.0)
        # A small temperature multiplies the logits' rounding. A large one leaves log-ratios of only 0.01,
        # which lose digits to the rounding of the log-sum-exps.
        coldest = min(temperature, teacher_temperature or temperature)
        factor = 20.0 if coldest < 0.5 else 4.0 if temperature == 100.0 else 2.0
        options = {"temperature": temperature, "teacher_temperature": teacher_temperature, "kd_ratio": 0.7}
        with during(**options):
            check(target, s, t, labels, factor=factor, divergence=divergence, **options)


@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.repeats(interpreted=6)
def test_reductions(target: Target, reduction: str, weighted: bool, masked: bool) -> None:
    s, t, labels = make(target, (2, 3, 77))
    weights = torch.rand(2, 3, device=target.device) if weighted else None
    if masked:
        labels[0, 1], labels[1, 2] = -100, -100
    check(target, s, t, labels, reduction=reduction, token_weights=weights, kd_ratio=0.5)


@pytest.mark.parametrize(
    "options",
    [
        {"label_smoothing": 0.1, "kd_ratio": 0.3},
        {"label_smoothing": 1.0, "kd_ratio": 0.0},
        {"z_loss": 1e-3, "kd_ratio": 0.5},
        {"z_loss": 1e-2},
        {"t_squared": False, "temperature": 4.0},
        {"kd_ratio": 0.0},
        {"kd_ratio": 0.0, "temperature": 3.0, "label_smoothing": 0.2},
        {"ignore_index": 3, "kd_ratio": 0.5},
        {"num_items": 11, "kd_ratio": 0.5},
        {"vocab_size": 100, "kd_ratio": 0.5, "label_smoothing": 0.1},
    ],
    ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()),
)
def test_options(target: Target, options: dict[str, object]) -> None:
    s, t, labels = make(target, (6, 133))
    labels.clamp_(max=99)
    check(target, s, t, labels, **options)


@pytest.mark.parametrize("shape", [(9,), (1, 9), (2, 3, 9), (2, 2, 3, 9), (1, 2, 1, 3, 9)])
def test_leading_shapes(target: Target, shape: tuple[int, ...]) -> None:
    s, t, labels = make(target, shape)
    check(target, s, t, labels, kd_ratio=0.5, reduction="none")
    check(target, s, t, labels, kd_ratio=0.5, reduction="batchmean")


def test_no_tokens(target: Target) -> None:
    s = torch.zeros(0, 9, device=target.device, requires_grad=True)
    loss = fastkd.kd_loss(s, torch.zeros(0, 9, device=target.device), **target.options)
    loss.backward()
    assert loss.item() == 0 and s.grad is not None and s.grad.shape == (0, 9)


def _views(x: Tensor) -> dict[str, Tensor]:
    """The same (2, 3, 40) numbers with various strides; unused elements between them are NaN."""
    shifted = x.new_full((2, 4, 40), float("nan"))
    shifted[:, :-1] = x
    padded = x.new_full((2, 3, 47), float("nan"))
    padded[..., :40] = x
    return {
        "shifted": shifted[:, :-1],
        "sliced": padded[..., :40],
        "columns_outer": x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        "batch_inner": x.transpose(0, 1).contiguous().transpose(0, 1),
        "every_other": x.repeat_interleave(2, -1)[..., ::2],
        "unaligned": torch.cat([x.new_zeros(1), x.flatten()])[1:].view(2, 3, 40),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "view", ["shifted", "sliced", "columns_outer", "batch_inner", "every_other", "unaligned"]
)
@pytest.mark.repeats(interpreted=6)
def test_strides(target: Target, view: str, dtype: torch.dtype) -> None:
    s, t, labels = make(target, (2, 3, 40), dtype)
    plain = fastkd.kd_loss(s.requires_grad_(), t, labels, kd_ratio=0.5, **target.options)
    plain.backward()
    for a, b in ((_views(s.detach())[view], t), (s.detach(), _views(t)[view])):
        a = a.requires_grad_() if a.is_leaf else a.detach().requires_grad_()
        loss = fastkd.kd_loss(a, b, labels, kd_ratio=0.5, **target.options)
        loss.backward()
        assert_value(loss.detach(), plain.detach())
        assert a.grad is not None and s.grad is not None
        assert_gradient(a.grad, s.grad)


def _spread(x: Tensor) -> Tensor:
    """The same numbers with columns a little more than 2^30 elements apart; the pages in between stay unused.

    Kernels count columns from a 16-byte boundary, and rows of an odd width begin at various distances from
    one.
    """
    return torch.empty_strided(x.shape, (1, 9, 2**30 + 1), dtype=x.dtype).copy_(x)


def _on_demand(target: Target) -> None:
    if target.device != "cpu":
        pytest.skip("only a CPU's memory takes no room before it is used")


@pytest.mark.parametrize("spread", ["student", "teacher", "student and teacher"])
def test_column_offsets_past_32_bits(target: Target, spread: str) -> None:
    _on_demand(target)
    s, t, labels = make(target, (2, 3, 3), torch.bfloat16)
    labels[0, 1] = -100
    far = [_spread(x) if name in spread else x.clone() for name, x in (("student", s), ("teacher", t))]
    results = []
    for student, teacher in ((s, t), far):
        student.requires_grad_(), teacher.requires_grad_()
        loss = fastkd.kd_loss(
            student, teacher, labels, kd_ratio=0.5, divergence="decoupled", **target.options
        )
        loss.backward()
        results.append((loss.detach(), student.grad, teacher.grad))
    for near, found in zip(*results, strict=True):
        torch.testing.assert_close(found, near)


def test_column_offsets_of_outputs_past_32_bits(target: Target) -> None:
    """A backend's outputs may also have column offsets past 32 bits.

    The dtype is float16 because interpreted Triton kernels write it directly to the given tensors; a bfloat16
    output they would write to a stand-in first.
    """
    _on_demand(target)
    s, t, labels = make(target, (2, 3, 3), torch.float16)
    labels[0, 1] = -100  # a row of zeros
    ones = torch.ones(6)
    spec = LossSpec("forward_kl", 0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, -100, 2)  # 2 of the 3 columns
    backend = REGISTRY[target.backend]
    results = []
    for place in (torch.clone, _spread):
        by_s, by_t = place(torch.full_like(s, 7.0)), place(torch.full_like(t, 7.0))
        loss = torch.empty(6)
        backend.rows(Call(s, t, labels.flatten().clamp(max=1), ones, ones, spec, loss, by_s, by_t))
        results.append((loss, by_s, by_t))
    for near, found in zip(*results, strict=True):
        torch.testing.assert_close(found, near, rtol=0, atol=0)
    assert (results[1][1][..., 2] == 0).all() and (results[1][1][0, 1] == 0).all()


def test_broadcast_teacher(target: Target) -> None:
    s, _, labels = make(target, (4, 50))
    t = torch.randn(1, 50, device=target.device).expand(4, 50)
    check(target, s, t, labels, kd_ratio=0.5)


def test_padded_widths(target: Target) -> None:
    s, t, labels = make(target, (4, 60))
    labels.clamp_(max=49)
    a = torch.full((4, 64), float("nan"), device=target.device)
    a[:, :60] = s
    a[:, 50:] = float("nan")
    b = t.clone()
    b[:, 50:] = float("inf")
    a.requires_grad_(), b.requires_grad_()
    loss = fastkd.kd_loss(a, b, labels, kd_ratio=0.5, vocab_size=50, **target.options)
    loss.backward()
    expected, by_s, by_t = reference_gradients(s[:, :50], t[:, :50], labels, kd_ratio=0.5)
    assert_value(loss.detach().cpu(), expected.cpu())
    assert a.grad is not None and b.grad is not None
    assert_gradient(a.grad[:, :50], by_s)
    assert_gradient(b.grad[:, :50], by_t, factor=4)
    assert (a.grad[:, 50:] == 0).all() and (b.grad[:, 50:] == 0).all()


def test_equals_the_plain_call(target: Target) -> None:
    """fastkd gives the same as the plain PyTorch expression that it replaces; both run in float32."""
    import torch.nn.functional as F

    s, t, labels = make(target, (16, 1234))
    for temperature in (0.05, 0.7, 1.0, 2.0, 10.0, 100.0):
        p, log_q = F.softmax(t / temperature, -1), F.log_softmax(s / temperature, -1)
        plain = F.kl_div(log_q, p, reduction="batchmean") * temperature**2
        fused = fastkd.kd_loss(s, t, temperature=temperature, **target.options)
        atol = 1e-5 + 1e-7 * temperature**2  # float32's error in the divergence, multiplied by T^2
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=atol)
        mixed = fastkd.kd_loss(s, t, labels, temperature=temperature, kd_ratio=0.5, **target.options)
        torch.testing.assert_close(
            mixed, 0.5 * plain + 0.5 * F.cross_entropy(s, labels), rtol=1e-5, atol=atol
        )


def test_large_vocabulary_and_common_offset(target: Target) -> None:
    columns = 3000 if target.backend == "triton" and target.device == "cpu" else 70_001
    s, t, labels = make(target, (2, columns))
    check(target, s + 200, t - 300, labels, kd_ratio=0.5, temperature=2.0, factor=20)


@pytest.mark.parametrize("columns", [1, 30])
def test_decoupled_without_others(target: Target, columns: int) -> None:
    """Where only the label has any probability, the term over the other tokens is 0 and nothing is NaN."""
    s = torch.full((2, columns), -float("inf"), device=target.device)
    s[:, 0] = torch.tensor([1.5, -2.0])
    t, labels = s.clone(), torch.zeros(2, dtype=torch.int64, device=target.device)
    check(target, s, t, labels, divergence="decoupled", kd_ratio=0.5, z_loss=1e-2)
