"""Ways to run a call and to compare what it returns with the right answer.

An error is relative: of a loss by its size, of a gradient by the norm of its difference from the right one.
A result that is not finite where the right one is has the error NaN or infinity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fastkd.conformance.adapter import Adapter, Call
from fastkd.conformance.expected import Expected, expected
from fastkd.divergences import DIVERGENCES

# The largest relative error that passes, by the coarsest dtype among the inputs, and float32 if the loss
# claims no more digits. Rounding a gradient to bfloat16 once costs 0.0017, to float16 0.0002; what float32
# costs depends on what cancels.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 1e-2}
# Differences up to these count as 0, in float64 and in all else. A gradient's norm has this slack
# for each unit of loss / T, since terms as large as that cancel in it.
LOSS_SLACK, GRADIENT_SLACK = {True: 1e-14, False: 1e-6}, {True: 1e-15, False: 1e-7}


@dataclass(frozen=True)
class Error:
    """How far one result is from the right one, and how far it may be."""

    what: str
    relative: float
    tolerance: float

    @property
    def wrong(self) -> bool:
        return not self.relative <= self.tolerance

    @property
    def size(self) -> float:
        """The error in units of the tolerance; NaN counts as infinity."""
        return math.inf if math.isnan(self.relative) else self.relative / self.tolerance


class Mismatch(Exception):
    """A result that no number describes: another shape, or none where there must be one."""


# Runs a call and returns the errors of its results. What the loss raises is passed on: it refuses the call.
Measure = Callable[[Adapter, Call], list[Error]]


def once(adapter: Adapter, call: Call) -> list[Error]:
    """Loss and gradient."""
    return scaled(1.0)(adapter, call)


def scaled(factor: float) -> Measure:
    """Loss, and its gradient after the loss was multiplied by a factor, as loss scaling does."""

    def measure(adapter: Adapter, call: Call) -> list[Error]:
        right = expected(adapter, call)
        upstream = _upstream(right.loss) * factor
        by_student = _gradient(right, upstream)
        student = _leaf(call.student)
        loss = _checked(adapter.loss(replace(call, student=student)), right.loss)
        errors = [_loss_error(adapter, call, loss, right.loss)]
        wide = torch.promote_types(loss.dtype, torch.float32)
        (loss * upstream.to(loss.device, wide)).sum().backward()
        return errors + _gradient_errors(
            call, student.grad, by_student, _bounds(adapter, call, right.loss * factor)
        )

    return measure


def through_a_square(adapter: Adapter, call: Call) -> list[Error]:
    """The gradient of the loss's square, whose upstream gradient is twice the loss."""
    right = expected(adapter, call)
    (by_student,) = torch.autograd.grad(right.loss.square(), right.student)
    student = _leaf(call.student)
    loss = _checked(adapter.loss(replace(call, student=student)), right.loss)
    loss.square().backward()
    return _gradient_errors(call, student.grad, by_student, _bounds(adapter, call, right.loss))


def twice(adapter: Adapter, call: Call) -> list[Error]:
    """Two backward passes through one graph, which must agree with the right gradient both times."""
    right = expected(adapter, call)
    by_student = _gradient(right, torch.full_like(right.loss, 5.0))
    student = _leaf(call.student)
    loss = 5.0 * _checked(adapter.loss(replace(call, student=student)), right.loss)
    found = [torch.autograd.grad(loss, student, retain_graph=True)[0].clone() for _ in range(2)]
    bounds = _bounds(adapter, call, 5.0 * right.loss)
    return [error for grad in found for error in _gradient_errors(call, grad, by_student, bounds)]


def second_derivative(adapter: Adapter, call: Call) -> list[Error]:
    """A Hessian times a vector, of the loss's square: a term that is silently dropped shows."""
    right = expected(adapter, call)
    generator = torch.Generator().manual_seed(1)
    vector = torch.randn(right.student.shape, generator=generator, dtype=torch.float64)
    product = _hessian_product(right.loss, right.student, vector)
    student = _leaf(call.student)
    loss = _checked(adapter.loss(replace(call, student=student)), right.loss)
    found = _hessian_product(loss, student, vector.to(student.device, student.dtype))
    return [_norm_error("second derivative", found, product, _bounds(adapter, call, right.loss))]


def teachers_gradient(adapter: Adapter, call: Call) -> list[Error]:
    """The gradient of a teacher that requires grad; none if the adapter says that it gets none."""
    right = expected(adapter, call)
    assert right.teacher is not None
    (by_teacher,) = torch.autograd.grad(right.loss, right.teacher)
    student, teacher = _leaf(call.student), _leaf(call.teacher_logits)
    loss = _checked(adapter.loss(replace(call, student=student, teacher=teacher)), right.loss)
    loss.backward()
    if adapter.teacher_gradient:
        if teacher.grad is None:
            raise Mismatch("the teacher gets no gradient")
        bounds = _bounds(adapter, call, right.loss)
        return [_norm_error("teacher's gradient", teacher.grad, by_teacher, bounds)]
    if teacher.grad is not None and bool((teacher.grad != 0).any()):
        raise Mismatch("the teacher gets a gradient")
    return []


def inputs_kept(adapter: Adapter, call: Call) -> list[Error]:
    """Loss and gradient, after which the inputs must hold the same bits."""
    student, teacher = call.student.clone(), call.teacher_logits.clone()
    errors = once(adapter, call)
    if not (torch.equal(call.student, student) and torch.equal(call.teacher_logits, teacher)):
        raise Mismatch("an input is overwritten")
    return errors


def in_parts(adapter: Adapter, call: Call) -> list[Error]:
    """Micro-batches of 1, 3 and the remaining tokens of a row, whose losses and gradients must add up.

    Either the loss takes the number of tokens of the whole batch, or it has the sum over tokens,
    which the caller divides.
    """
    valid = call.student[..., 0].numel() if call.labels is None else int((call.labels != -100).sum())
    by_sum = adapter.named("sum")
    if "num_items" in adapter.takes:
        whole, divisor = replace(call, num_items=valid), 1
    else:
        assert by_sum is not None
        whole, divisor = replace(call, reduction=by_sum), valid
    right = expected(adapter, whole)
    by_student = _gradient(right, torch.ones_like(right.loss) / divisor)
    student = _leaf(call.student)
    total, loss = torch.zeros((), dtype=torch.float64), right.loss
    for part in (slice(0, 1), slice(1, 4), slice(4, None)):
        labels = None if call.labels is None else call.labels[:, part]
        loss = adapter.loss(
            replace(whole, student=student[:, part], teacher=call.teacher_logits[:, part], labels=labels)
        )
        loss = _checked(loss, right.loss) / divisor
        loss.backward()
        total += loss.detach().double().cpu()
    errors = [_loss_error(adapter, call, total.to(loss.dtype), right.loss / divisor)]
    return errors + _gradient_errors(
        call, student.grad, by_student, _bounds(adapter, call, right.loss / divisor)
    )


def nan_shows(adapter: Adapter, call: Call) -> list[Error]:
    """A loss that must be NaN."""
    loss = adapter.loss(replace(call, student=_leaf(call.student)))
    if not bool(loss.isnan().any()):
        raise Mismatch(f"the loss is {float(loss.detach()):.3g}, not NaN")
    return []


def under_autocast(adapter: Adapter, call: Call) -> list[Error]:
    """Loss and gradient within autocast to bfloat16, which must not change the loss's arithmetic."""
    with torch.autocast(call.student.device.type, dtype=torch.bfloat16):
        return once(adapter, call)


def _leaf(x: Tensor) -> Tensor:
    """A leaf with the memory and the strides of ``x``."""
    return x.detach().requires_grad_()


def _upstream(loss: Tensor) -> Tensor:
    """1 for a scalar; for one loss per token, factors that differ."""
    if not loss.dim():
        return torch.ones_like(loss)
    return torch.linspace(0.5, 2.0, loss.numel(), dtype=loss.dtype).view(loss.shape)


def _checked(loss: Tensor, right: Tensor) -> Tensor:
    """The loss in the right shape; one loss per token may come flattened, and a scalar with one element."""
    if loss.numel() != right.numel():
        raise Mismatch(f"the loss has shape {tuple(loss.shape)}, not {tuple(right.shape)}")
    return loss.reshape(right.shape)


def _gradient(right: Expected, upstream: Tensor) -> Tensor:
    return torch.autograd.grad(right.loss, right.student, upstream.detach())[0]


def _hessian_product(loss: Tensor, student: Tensor, vector: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss.square(), student, create_graph=True)
    return torch.autograd.grad((gradient * vector).sum(), student)[0]


def _tolerance(adapter: Adapter, call: Call) -> float:
    teacher = call.teacher if isinstance(call.teacher, Tensor) else call.teacher.logprobs
    dtypes = {call.student.dtype, teacher.dtype} | ({torch.float32} if adapter.in_float32 else set())
    return max(TOLERANCES[dtype] for dtype in dtypes)


def _fine(adapter: Adapter, call: Call) -> bool:
    return _tolerance(adapter, call) == TOLERANCES[torch.float64]


def _loss_error(adapter: Adapter, call: Call, found: Tensor, right: Tensor) -> Error:
    """The error of the largest element; where the right loss exceeds the dtype, infinity is right."""
    tolerance = _tolerance(adapter, call)
    a, b = found.detach().double().cpu(), right.detach().to(found.dtype).double()
    off = torch.where(a == b, 0.0, (a - b).abs())
    slack = LOSS_SLACK[_fine(adapter, call)]
    relative = torch.where(off <= slack, 0.0, off / b.abs().clamp_min(1e-300))
    return Error("loss", _largest(relative), tolerance)


class _Bounds(NamedTuple):
    """The largest relative error of a gradient that passes, and the norm of a difference that counts as 0."""

    tolerance: float
    slack: float


def _bounds(adapter: Adapter, call: Call, right: Tensor) -> _Bounds:
    """The bounds for the gradient of a loss that has the value ``right``."""
    largest = float(right.detach().abs().max())
    terms = max(1.0, largest) if largest < math.inf else 1.0
    slack = GRADIENT_SLACK[_fine(adapter, call)] * max(1.0, 1 / call.temperature) * terms
    return _Bounds(_tolerance(adapter, call), slack)


def _gradient_errors(call: Call, found: Tensor | None, right: Tensor, bounds: _Bounds) -> list[Error]:
    """The error of a gradient; where labels have a part in it, of the labels' entries and of all others."""
    if found is None:
        raise Mismatch("the student gets no gradient")
    if call.labels is None or not (call.kd_ratio < 1 or DIVERGENCES[call.divergence].splits_label):
        return [_norm_error("gradient", found, right, bounds)]
    labels = call.labels.cpu()
    touched = torch.zeros(right.shape, dtype=torch.bool)
    touched = touched.scatter(-1, labels.clamp_min(0)[..., None], True) & (labels != -100)[..., None]
    found = found.cpu()
    at_labels = _norm_error("gradient at the labels", found[touched], right[touched], bounds)
    return [at_labels, _norm_error("gradient", found[~touched], right[~touched], bounds)]


def _norm_error(what: str, found: Tensor, right: Tensor, bounds: _Bounds) -> Error:
    a, b = found.detach().double().cpu(), right.detach()
    off, norm = float((a - b).norm()), float(b.norm())
    # Where the right gradient has no number in its dtype, any will do.
    if off <= bounds.slack or not bool(b.to(found.dtype).isfinite().all()):
        return Error(what, 0.0, bounds.tolerance)
    return Error(what, off / norm if norm > 0 else math.inf, bounds.tolerance)


def _largest(x: Tensor) -> float:
    return math.nan if bool(x.isnan().any()) else float(x.max()) if x.numel() else 0.0
