"""A right loss and deliberately wrong ones, each with the cases of the conformance kit that must find it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastkd.conformance import Adapter, Call, Sparse, oracle
from fastkd.conformance.adapter import OPTIONS, TAILS
from fastkd.conformance.cases import CASES

REDUCTIONS = {"mean": "valid tokens", "sum": "sum", "batchmean": "sequences", "none": "none"}
Loss = Callable[[Call], Tensor]


class Wrong(NamedTuple):
    """A wrong loss, and the cases that must say so, and no others, for these divergences."""

    loss: Loss
    cases: tuple[str, ...]
    divergences: tuple[str, ...] = ("forward_kl",)
    refuses: tuple[str, ...] = ()


def right(call: Call, **changes: Any) -> Tensor:
    """The oracle itself, differentiated by autograd; the loss is float32, or float64 for float64 logits."""
    call = replace(call, **changes)
    if isinstance(call.teacher, Tensor):
        teacher: Tensor | Sparse = call.teacher.double()
    else:
        teacher = Sparse(call.teacher.indices, call.teacher.logprobs.double(), call.teacher.tail)
    loss = oracle.kd_loss(
        *(call.student.double(), teacher, call.labels),
        kd_ratio=call.kd_ratio,
        divergence=call.divergence,
        alpha=call.alpha,
        beta=call.beta,
        temperature=call.temperature,
        reduction=call.reduction,
        num_items=call.num_items,
        token_weights=call.token_weights,
        vocab_size=call.vocab_size,
    )
    return loss if call.student.dtype == torch.float64 else loss.float()


def adapter_of(loss: Loss, divergences: tuple[str, ...] = ("forward_kl", "reverse_kl", "jsd")) -> Adapter:
    """An adapter that claims everything."""
    return Adapter(
        "tested",
        loss,
        function="right",
        divergences=divergences,
        reductions=REDUCTIONS,
        takes=OPTIONS,
        tails=TAILS,
        teacher_gradient=True,
    )


def with_terms(terms: Callable[[Tensor, Tensor, Call], Tensor]) -> Loss:
    """A loss whose divergence over dense logits, computed by ``terms`` of log p and log q, is its own."""

    def loss(call: Call) -> Tensor:
        if not isinstance(call.teacher, Tensor) or call.kd_ratio < 1:
            return right(call)
        end = call.vocab_size
        s, t = call.student[..., :end], call.teacher[..., :end]
        dtype = torch.promote_types(torch.promote_types(s.dtype, t.dtype), torch.float32)
        valid = torch.ones(s.shape[:-1], dtype=torch.bool) if call.labels is None else call.labels != -100
        log_p, log_q = (F.log_softmax(x[valid].to(dtype) / call.temperature, -1) for x in (t, s))
        kept = terms(log_p, log_q, call) * call.temperature**2
        rows = torch.zeros(valid.shape, dtype=kept.dtype).masked_scatter(valid, kept)
        return reduced(call, rows, valid)

    return loss


def reduced(call: Call, losses: Tensor, valid: Tensor) -> Tensor:
    weights = torch.ones(valid.shape) if call.token_weights is None else call.token_weights
    weights = torch.where(valid, weights, 0.0).to(losses.dtype)
    weighted = losses * weights
    if call.reduction == "none":
        return weighted
    total = {"sum": 1.0, "batchmean": len(valid), "mean": call.num_items or weights.sum()}[call.reduction]
    return weighted.sum() / total if total else weighted.sum() * 0


class _Gradient(torch.autograd.Function):
    """Returns a loss whose gradient was computed beforehand, in one of several wrong ways."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, loss: Tensor, gradient: Tensor, how: str) -> Tensor:
        ctx.gradient, ctx.how = gradient, how
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        if ctx.how == "ignores upstream":
            return ctx.gradient, None, None, None
        if ctx.how == "scales in place":
            return ctx.gradient.mul_(upstream).clone(), None, None, None
        return ctx.gradient * upstream, None, None, None


def early_gradient(how: str, change: Callable[[Tensor, Call], Tensor] = lambda g, call: g) -> Loss:
    """A loss that computes its gradient in the forward pass, for scalars."""

    def loss(call: Call) -> Tensor:
        if call.reduction == "none" or not isinstance(call.teacher, Tensor) or call.teacher.requires_grad:
            return right(call)
        with torch.enable_grad():
            student = call.student.detach().double().requires_grad_()
            value = right(call, student=student)
            (gradient,) = torch.autograd.grad(value, student)
        dtype = torch.promote_types(call.student.dtype, torch.float32)
        return _Gradient.apply(call.student, value.detach().to(dtype), change(gradient, call), how)

    return loss


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def naive_kl(log_p: Tensor, log_q: Tensor, call: Call) -> Tensor:
    return kl(log_p, log_q)


def mixture_of_probabilities(log_p: Tensor, log_q: Tensor, call: Call) -> Tensor:
    log_m = (call.beta * log_p.exp() + (1 - call.beta) * log_q.exp()).log()
    return call.beta * kl(log_p, log_m) + (1 - call.beta) * kl(log_q, log_m)


def jsd_in_the_dtype_of_the_logits(log_p: Tensor, log_q: Tensor, call: Call) -> Tensor:
    wide = log_p.dtype
    if torch.bfloat16 in (call.student.dtype, call.teacher_logits.dtype):
        log_p, log_q = log_p.bfloat16(), log_q.bfloat16()
    return oracle.divergence("jsd", log_p, log_q, call.beta).to(wide)


def summed_by_a_product(log_p: Tensor, log_q: Tensor, call: Call) -> Tensor:
    log_ratio = torch.where(log_p == -math.inf, 0.0, log_p - log_q)
    return (log_p.exp()[:, None] @ log_ratio[..., None])[:, 0, 0].to(log_p.dtype)


def unshifted(call: Call) -> Tensor:
    """Softmaxes as exp / sum, without subtracting the maximum, where float32 overflows."""
    loss = right(call)
    if not isinstance(call.teacher, Tensor):
        return loss
    read = call.student.float() if call.labels is None else call.student.float()[call.labels != -100]
    sums = (read[..., : call.vocab_size] / call.temperature).exp().sum(-1)
    return loss + torch.where(sums.isinf().any() | (sums == 0).any(), math.nan, 0.0)


def swapped(call: Call) -> Tensor:
    if not isinstance(call.teacher, Tensor) or call.kd_ratio < 1:
        return right(call)
    return right(call, student=call.teacher, teacher=call.student)


def t_squared_on_the_value(call: Call) -> Tensor:
    small = right(call) / call.temperature**2
    return small + (right(call) - small).detach()


def cross_entropy_at_t(call: Call) -> Tensor:
    if call.kd_ratio == 1:
        return right(call)
    assert call.labels is not None
    ce = F.cross_entropy(call.student.flatten(0, -2) / call.temperature, call.labels.flatten())
    return call.kd_ratio * right(call, kd_ratio=1.0) + (1 - call.kd_ratio) * ce


def masked_by_a_product(call: Call) -> Tensor:
    """Rows of ignored tokens are computed, and their losses multiplied by 0."""
    if call.labels is None or call.kd_ratio < 1:
        return right(call)
    valid = call.labels != -100
    return reduced(call, right(call, labels=None, reduction="none", token_weights=None), valid)


def mean_of_nothing(call: Call) -> Tensor:
    if call.labels is not None and (call.labels == -100).all() and call.reduction == "mean":
        return call.student[call.labels != -100].sum() / 0
    return right(call)


def micro_batch_denominator(call: Call) -> Tensor:
    return right(call, num_items=None)


def overwriting(call: Call) -> Tensor:
    loss = right(call)
    with torch.no_grad():
        call.student.data[..., 0] = call.student.data[..., 0] + 1
    return loss


def contiguous_memory(call: Call) -> Tensor:
    """Reads the student's memory as if its rows followed each other."""
    shape = call.student.shape
    strides = (shape[1] * shape[2], shape[2], 1)
    return right(call, student=call.student.as_strided(shape, strides))


def padding_counted(call: Call) -> Tensor:
    """Columns past the vocabulary take probability mass, and a shorter side is padded with zeros."""
    if call.vocab_size is None or not isinstance(call.teacher, Tensor):
        return right(call)
    width = max(call.student.shape[-1], call.teacher.shape[-1])
    student, teacher = (F.pad(x.nan_to_num(), (0, width - x.shape[-1])) for x in (call.student, call.teacher))
    return right(call, student=student, teacher=teacher, vocab_size=None)


def first_columns(call: Call) -> Tensor:
    """A kernel with a cap on the vocabulary."""
    return right(call, vocab_size=65_536) if call.student.shape[-1] > 65_536 else right(call)


def other_tail(call: Call) -> Tensor:
    """The tail of a top-K teacher is dropped, whichever is asked for."""
    if isinstance(call.teacher, Tensor) or call.divergence != "forward_kl":
        return right(call)
    return right(call, teacher=call.teacher._replace(tail="drop"))


def in_float32(call: Call) -> Tensor:
    student, teacher = call.student, call.teacher
    if student.dtype != torch.float64 or not isinstance(teacher, Tensor):
        return right(call)
    return right(call, student=student.float(), teacher=teacher.float()).double()


def rounded_teacher(call: Call) -> Tensor:
    """The teacher is converted to the student's dtype first, and that to bfloat16 where they differ."""
    if not isinstance(call.teacher, Tensor) or call.teacher.dtype == call.student.dtype:
        return right(call)
    return right(call, teacher=(call.teacher.float() * 8).round() / 8)


def detached_teacher(call: Call) -> Tensor:
    teacher = call.teacher.detach() if isinstance(call.teacher, Tensor) else call.teacher
    return right(call, teacher=teacher)


def hidden_nan(call: Call) -> Tensor:
    return right(call).nan_to_num()


INFINITE = ("-inf on both sides", "-inf in the teacher")
# The cases that ask for the divergence of two logits and for nothing else that hides its direction.
WITH_A_DIRECTION = tuple(
    case.name
    for case in CASES
    if case.name not in ("parameters", "cross-entropy", "all labels ignored", "NaN shows", "top-K teacher")
)
WRONG = {
    "the sides are swapped": Wrong(swapped, WITH_A_DIRECTION),
    "the mixture's weights are swapped": Wrong(
        lambda call: right(call, beta=1 - call.beta), ("parameters",), ("jsd",)
    ),
    "no factor T^2": Wrong(
        lambda call: right(call) / call.temperature**2,
        ("temperature 3", "temperatures 0.05 to 100", "cross-entropy"),
    ),
    "T^2 in the value alone": Wrong(
        t_squared_on_the_value, ("temperature 3", "temperatures 0.05 to 100", "cross-entropy")
    ),
    "a mixture of probabilities": Wrong(
        with_terms(mixture_of_probabilities),
        ("temperatures 0.05 to 100", "large logits", "confident models", *INFINITE),
        ("jsd",),
    ),
    "batchmean is the mean over tokens": Wrong(
        lambda call: right(call) / (call.student.shape[1] if call.reduction == "batchmean" else 1),
        ("reductions",),
    ),
    "cross-entropy at the temperature": Wrong(cross_entropy_at_t, ("cross-entropy",)),
    "the mask is not used": Wrong(
        lambda call: right(call, labels=call.labels if call.kd_ratio < 1 else None),
        (
            "reductions",
            "ignored labels",
            "ignored rows hold NaN",
            "all labels ignored",
            "gradient accumulation",
        ),
    ),
    "the mask is a product": Wrong(masked_by_a_product, ("ignored rows hold NaN",)),
    "a mean over no tokens": Wrong(mean_of_nothing, ("all labels ignored",)),
    "weights of tokens are not used": Wrong(lambda call: right(call, token_weights=None), ("token weights",)),
    "a mean of means": Wrong(micro_batch_denominator, ("gradient accumulation",)),
    "the upstream gradient is not used": Wrong(
        early_gradient("ignores upstream"),
        ("upstream gradient", "square of the loss", "backward twice", "float16, loss scale 32,768"),
        refuses=("second derivatives",),
    ),
    "a second backward scales twice": Wrong(
        early_gradient("scales in place"), ("backward twice",), refuses=("second derivatives",)
    ),
    "the second derivative lacks a term": Wrong(early_gradient("constant"), ("second derivatives",)),
    "the gradient is rounded to float16 before it is scaled": Wrong(
        early_gradient("constant", lambda g, call: g.half() if call.student.dtype == torch.float16 else g),
        ("second derivatives", "float16, loss scale 32,768"),
    ),
    "the teacher gets no gradient": Wrong(detached_teacher, ("teacher's gradient",)),
    "the student's logits are overwritten": Wrong(overwriting, ("inputs kept",)),
    "float32 for float64 inputs": Wrong(in_float32, ("float64",)),
    "bfloat16 inside": Wrong(
        with_terms(jsd_in_the_dtype_of_the_logits),
        ("bfloat16", "near-identical bfloat16", "two dtypes"),
        ("jsd",),
    ),
    "no maximum is subtracted": Wrong(
        unshifted, ("temperatures 0.05 to 100", "large logits", "confident models")
    ),
    "0 times infinity": Wrong(with_terms(naive_kl), INFINITE),
    "NaN becomes 0": Wrong(hidden_nan, ("NaN shows",)),
    "memory is taken to be contiguous": Wrong(contiguous_memory, ("strided inputs",)),
    "the teacher is rounded to another dtype": Wrong(rounded_teacher, ("two dtypes",)),
    "a product that autocast rounds": Wrong(with_terms(summed_by_a_product), ("autocast",)),
    "padding takes probability": Wrong(padding_counted, ("padded vocabulary", "two widths")),
    "a cap on the vocabulary": Wrong(first_columns, ("vocabulary sizes",)),
    "another tail": Wrong(other_tail, ("top-K teacher",)),
}
