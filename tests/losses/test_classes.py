"""Test class weights, class probabilities as labels, and a class dimension that is not the last."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.closeness import assert_gradient, assert_value
from support.targets import Target
from torch import Tensor

import fastkd

COLUMNS = 37


def make(target: Target) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Student, teacher, hard labels (some ignored), class probabilities and class weights."""
    s, t = torch.randn(4, 3, COLUMNS) * 2, torch.randn(4, 3, COLUMNS) * 2
    labels = torch.randint(0, COLUMNS, (4, 3))
    labels[1, 2] = labels[3, 0] = -100
    soft = torch.softmax(torch.randn(4, 3, COLUMNS) * 2, -1) * 1.2
    soft[0, 0] = F.one_hot(torch.tensor(5), COLUMNS)  # probabilities with zeros
    weights = torch.rand(COLUMNS) * 3
    weights[7] = 0
    return tuple(x.to(target.device) for x in (s, t, labels, soft, weights))  # type: ignore[return-value]


def cross_entropy(
    s: Tensor, labels: Tensor, weights: Tensor | None, smoothing: float, reduction: str, scale: Tensor
) -> Tensor:
    """F.cross_entropy in float64, with token weights."""
    s = s.flatten(0, -2)
    labels = labels.flatten(0, -2).to(s.dtype) if labels.is_floating_point() else labels.flatten()
    weights = None if weights is None else weights.double()
    rows = F.cross_entropy(s, labels, weights, label_smoothing=smoothing, reduction="none") * scale.flatten()
    if reduction == "none":
        return rows.view(scale.shape)
    if reduction == "sum":
        return rows.sum()
    if labels.is_floating_point():
        return rows.sum() / scale.sum()
    by_label = torch.ones_like(rows) if weights is None else weights[labels.clamp(min=0)]
    return rows.sum() / (by_label * scale.flatten() * (labels >= 0)).sum()


@pytest.mark.repeats(interpreted=4)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.15])
@pytest.mark.parametrize("given", ["weights", "soft", "soft and weights"])
def test_the_loss_is_that_of_both_terms(target: Target, given: str, smoothing: float, reduction: str) -> None:
    s, t, hard, soft, weights = make(target)
    labels = soft if "soft" in given else hard
    class_weights = weights if "weights" in given else None
    token_weights = torch.rand(4, 3, device=target.device)
    token_weights[2, 1] = 0
    options = {"kd_ratio": 0.4, "temperature": 2.0, "z_loss": 1e-3, "reduction": reduction}
    options |= {"label_smoothing": smoothing, "class_weights": class_weights, "token_weights": token_weights}
    x = s.clone().requires_grad_()
    loss = fastkd.kd_loss(x, t, labels, **options, **target.options)
    upstream = torch.rand_like(loss)
    loss.backward(upstream)

    x64 = s.double().requires_grad_()
    scale = token_weights.double()
    valid = torch.ones_like(scale) if "soft" in given else (hard >= 0).double()
    log_q, log_p = torch.log_softmax(x64 / 2, -1), torch.log_softmax(t.double() / 2, -1)
    rows = 0.4 * 4 * (log_p.exp() * (log_p - log_q)).sum(-1) + 1e-3 * torch.logsumexp(x64, -1) ** 2
    rows = rows * scale * valid
    others = rows.sum() / (scale * valid).sum() if reduction == "mean" else rows.sum()
    others = rows if reduction == "none" else others
    exact = others + 0.6 * cross_entropy(x64, labels, class_weights, smoothing, reduction, scale)
    exact.backward(upstream.double())
    assert_value(loss.detach().cpu(), exact.detach().cpu())
    assert_gradient(x.grad, x64.grad, factor=2)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("given", ["hard", "soft"])
def test_num_items_adds_micro_batches_up(given: str, smoothing: float) -> None:
    s, t, hard, soft, weights = make(Target("native"))
    labels = soft if given == "soft" else hard
    options = {"kd_ratio": 0.5, "class_weights": weights, "num_items": 11, "label_smoothing": smoothing}
    whole = fastkd.kd_loss(s, t, labels, **options)
    parts = [fastkd.kd_loss(s[i : i + 2], t[i : i + 2], labels[i : i + 2], **options) for i in (0, 2)]
    torch.testing.assert_close(whole, sum(parts))


@pytest.mark.parametrize("chunk_size", [None, 5])
@pytest.mark.parametrize("given", ["hard", "soft"])
def test_from_hidden_states(target: Target, given: str, chunk_size: int | None) -> None:
    _, _, hard, soft, weights = make(target)
    labels = soft if given == "soft" else hard
    h, w = torch.randn(4, 3, 8, device=target.device), torch.randn(COLUMNS, 8, device=target.device)
    teacher = fastkd.HiddenTeacher(torch.randn_like(h), torch.randn_like(w))
    options = {"kd_ratio": 0.3, "class_weights": weights, "label_smoothing": 0.1, "return_metrics": True}
    found = []
    for linear in (True, False):
        x, y = h.clone().requires_grad_(), w.clone().requires_grad_()
        if linear:
            loss, metrics = fastkd.linear_kd_loss(
                x, y, teacher, labels, chunk_size=chunk_size, **options, **target.options
            )
        else:
            loss, metrics = fastkd.kd_loss(x @ y.t(), teacher, labels, **options, **target.options)
        found.append((loss.detach(), *torch.autograd.grad(loss, (x, y)), *metrics))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kd_ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("given", ["weights", "soft"])
def test_metrics(target: Target, given: str, kd_ratio: float) -> None:
    """The cross-entropy is F.cross_entropy's mean; the other metrics do not depend on class weights."""
    s, t, hard, soft, weights = make(target)
    labels = soft if given == "soft" else hard
    options = {"kd_ratio": kd_ratio, "return_metrics": True, **target.options}
    _, found = fastkd.kd_loss(s, t, labels, class_weights=weights, label_smoothing=0.1, **options)
    _, plain = fastkd.kd_loss(s, t, None if given == "soft" else labels, **{**options, "kd_ratio": 1.0})
    rows = cross_entropy(s.double(), labels, weights, 0.1, "none", torch.ones(4, 3, device=target.device))
    valid = torch.ones_like(rows) if given == "soft" else hard >= 0
    assert_value(found.ce.cpu(), (rows.sum() / valid.sum()).cpu())
    for name in ("kd", "student_entropy", "teacher_entropy", "agreement", "num_valid"):
        torch.testing.assert_close(getattr(found, name), getattr(plain, name))


@pytest.mark.parametrize("dim", [1, 0, -2])
def test_the_class_dimension_may_be_any(target: Target, dim: int) -> None:
    s, t, hard, soft, weights = make(target)
    for labels in (hard, soft):
        options = {"kd_ratio": 0.5, "class_weights": weights, "reduction": "none", **target.options}
        x = s.clone().requires_grad_()
        last = fastkd.kd_loss(x, t, labels, **options)
        last.sum().backward()
        moved = s.movedim(-1, dim).contiguous().requires_grad_()
        elsewhere = fastkd.kd_loss(
            moved,
            t.movedim(-1, dim).contiguous(),
            soft.movedim(-1, dim) if labels is soft else hard,
            class_dim=dim,
            **options,
        )
        elsewhere.sum().backward()
        torch.testing.assert_close(elsewhere, last, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(moved.grad.movedim(dim, -1), x.grad, rtol=1e-5, atol=1e-7)


def test_inplace_and_padded_columns(target: Target) -> None:
    s, t, hard, soft, weights = make(target)
    wide = torch.cat([s, s.new_full((4, 3, 5), float("nan"))], -1)
    for labels in (hard, soft):
        options = {"kd_ratio": 0.5, "class_weights": weights, **target.options}
        x, y = s.clone().requires_grad_(), wide.clone().requires_grad_()
        plain = fastkd.kd_loss(x, t, labels, **options)
        padded = fastkd.kd_loss(y * 1, t, labels, vocab_size=COLUMNS, inplace=True, **options)
        torch.testing.assert_close(plain, padded)
        plain.backward()
        padded.backward()
        torch.testing.assert_close(y.grad[..., :COLUMNS], x.grad)
        assert (y.grad[..., COLUMNS:] == 0).all()


def test_nothing_to_average() -> None:
    s = torch.randn(2, 5, requires_grad=True)
    weights = torch.tensor([0.0, 1, 1, 1, 1])
    for labels in (torch.zeros(2).long(), torch.full((2,), -100), torch.zeros(2, 5)):
        loss = fastkd.kd_loss(s, None, labels, kd_ratio=0.0, class_weights=weights)
        (grad,) = torch.autograd.grad(loss, s)
        assert loss == 0 and (grad == 0).all()


def test_refused() -> None:
    s, t, hard, soft, weights = make(Target("native"))

    def refuse(error: type[Exception], match: str, labels: Tensor = hard, **options: object) -> None:
        with pytest.raises(error, match=match):
            fastkd.kd_loss(s, t, labels, kd_ratio=0.5, **options)  # type: ignore[arg-type]

    refuse(ValueError, r"class_weights must have shape \(37,\)", class_weights=weights[:-1])
    refuse(ValueError, "class_weights must not be negative", class_weights=-weights)
    refuse(TypeError, "class_weights must be a floating tensor", class_weights=[1.0] * COLUMNS)
    refuse(ValueError, "class_weights must not require grad", class_weights=weights.requires_grad_())
    refuse(ValueError, r"class probabilities must have shape \(4, 3, 37\)", soft[..., :-1])
    refuse(ValueError, "class probabilities must have shape", soft[:2])
    refuse(TypeError, "labels must be an int64 tensor", hard.float())
    refuse(ValueError, "labels must not require grad", soft.clone().requires_grad_())
    refuse(ValueError, "treats one label apart", soft, divergence="decoupled")
    refuse(ValueError, r"class_dim must be in \[-3, 2\]", class_dim=3)
    refuse(TypeError, "class_dim must be an int", class_dim=1.0)
    refuse(IndexError, "label 37 at token 0", torch.full((4, 3), 37), class_weights=weights.detach())


@pytest.mark.parametrize("given", ["hard", "soft"])
def test_compile(given: str) -> None:
    s, t, hard, soft, weights = make(Target("native"))
    labels = soft if given == "soft" else hard

    def loss(x: Tensor) -> Tensor:
        return fastkd.kd_loss(x, t, labels, kd_ratio=0.3, class_weights=weights)

    x, y = (s.clone().requires_grad_() for _ in range(2))
    torch.compile(loss, fullgraph=True, backend="aot_eager")(x).backward()
    loss(y).backward()
    torch.testing.assert_close(x.grad, y.grad)
