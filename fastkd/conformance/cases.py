"""The cases: what each asks, what a loss needs for it, and the calls that it makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from fastkd.conformance import measures
from fastkd.conformance.adapter import Adapter, Call
from fastkd.conformance.inputs import BATCH, IGNORED, LENGTH, VOCAB, Inputs
from fastkd.conformance.oracle import INF, Sparse
from fastkd.divergences import DIVERGENCES

# Calls of a case, each with a few words that tell it from the others.
Calls = Callable[[Adapter, Inputs], Iterator[tuple[str, Call]]]
# Why a loss cannot express a case, or None.
Need = Callable[[Adapter], str | None]


def anything(adapter: Adapter) -> str | None:
    return None


def takes(*options: str) -> Need:
    """A need for arguments."""
    words = {
        "labels": "no argument for labels or a mask",
        "temperature": "no temperature",
        "kd_ratio": "no cross-entropy",
        "parameters": "no parameter of a divergence",
        "num_items": "no argument for the number of tokens of the whole batch",
        "token_weights": "no weights of tokens",
        "vocab_size": "no argument that says where the vocabulary ends",
    }

    def need(adapter: Adapter) -> str | None:
        return next((words[name] for name in options if name not in adapter.takes), None)

    return need


def _parts(adapter: Adapter) -> str | None:
    if "num_items" in adapter.takes or adapter.named("sum"):
        return None
    return "neither a number of tokens nor a sum over tokens"


def _infinities(*sides: str) -> Need:
    def need(adapter: Adapter) -> str | None:
        hidden = [side for side in sides if side in adapter.from_hidden]
        return f"the {hidden[0]} is given by hidden states, which are finite" if hidden else None

    return need


def _plain_arithmetic(adapter: Adapter) -> str | None:
    return "its matrix product follows autocast, as it must" if adapter.from_hidden else None


def _scalars(adapter: Adapter) -> str | None:
    return None if any(kind != "none" for kind in adapter.reductions.values()) else "no scalar loss"


def _tails(adapter: Adapter) -> str | None:
    return None if adapter.tails else "no top-K teacher"


def _plain(adapter: Adapter, make: Inputs) -> Iterator[tuple[str, Call]]:
    for name in adapter.divergences:
        yield name, make.call(adapter, *make.pair(), name)


def _parameters(adapter: Adapter, make: Inputs) -> Iterator[tuple[str, Call]]:
    for name in adapter.divergences:
        given = DIVERGENCES[name].parameters
        for parameter in given:
            for value in (0.2, 0.8):
                number: dict[str, Any] = {parameter: value}
                yield f"{name}, {parameter} = {value}", make.call(adapter, *make.pair(), name, **number)


def _reductions(adapter: Adapter, make: Inputs) -> Iterator[tuple[str, Call]]:
    for reduction in adapter.reductions:
        labels = make.labels(BATCH, LENGTH) if "labels" in adapter.takes else None
        if labels is not None:
            labels[0, 2:] = IGNORED
        yield (
            reduction,
            make.call(adapter, *make.pair(), adapter.divergences[0], reduction=reduction, labels=labels),
        )


def _temperatures(*temperatures: float) -> Calls:
    def calls(adapter: Adapter, make: Inputs) -> Iterator[tuple[str, Call]]:
        for name in adapter.divergences:
            for t in temperatures:
                yield f"{name}, T = {t:g}", make.call(adapter, *make.pair(std=4.0), name, temperature=t)

    return calls


def _mixed(adapter: Adapter, make: Inputs) -> Iterator[tuple[str, Call]]:
    temperature = 2.0 if "temperature" in adapter.takes else 1.0
    for name in adapter.divergences:
        labels = make.labels(BATCH, LENGTH)
        yield (
            name,
            make.call(adapter, *make.pair(), name, labels=labels, kd_ratio=0.3, temperature=temperature),
        )


def _masked(adapter: Adapter, make: Inputs) -> Iterator[tuple[str, Call]]:
    for name in adapter.divergences:
        labels = make.labels(BATCH, LENGTH)
        labels[0, 1:] = IGNORED
        labels[1, 0] = IGNORED
        yield name, make.call(adapter, *make.pair(), name, labels=labels)


def _masked_nan(adapter: Adapter, make: Inputs) -> Iterator[tuple[str, Call]]:
    for name, call in _masked(adapter, make):
        assert call.labels is not None
        ignored = call.labels == IGNORED
        call.student[ignored] = math.nan
        call.teacher_logits[ignored] = INF
        yield name, call


def _all_masked(adapter: Adapter, make: Inputs) -> Iterator[tuple[str, Call]]:
    for name in adapter.divergences:
        labels = torch.full_like(make.labels(BATCH, LENGTH), IGNORED)
        yield name, make.call(adapter, *make.pair(), name, labels=labels)


def _weighted(adapter: Adapter, make: Inputs) -> Iterator[tuple[str, Call]]:
    for reduction, kind in adapter.reductions.items():
        if kind in ("valid tokens", "sum", "none"):
            weights = make.uniform(BATCH, LENGTH)
            name = adapter.divergences[0]
            yield (
                reduction,
                make.call(adapter, *make.pair(), name, token_weights=weights, reduction=reduction),
            )


def _uneven(adapter: Adapter, make: Inputs) -> Iterator[tuple[str, Call]]:
    for name in adapter.divergences:
        labels = None
        if "labels" in adapter.takes:
            labels = make.labels(1, 9)
            labels[0, [1, 2, 5]] = IGNORED
        yield name, make.call(adapter, *make.pair(1, 9), name, labels=labels)


def _of_dtype(dtype: torch.dtype) -> Calls:
    def calls(adapter: Adapter, make: Inputs) -> Iterator[tuple[str, Call]]:
        for name in adapter.divergences:
            yield name, make.call(adapter, *make.pair(vocab=500, dtype=dtype), name)

    return calls


def _small_gradients(adapter: Adapter, make: Inputs) -> Iterator[tuple[str, Call]]:
    """So many tokens that a mean's gradient is below float16's normal numbers, unless it is scaled first."""
    for name in adapter.divergences:
        yield name, make.call(adapter, *make.pair(2, 400, 1000, std=0.5, dtype=torch.float16), name)


def _near(adapter: Adapter, make: Inputs) -> Iterator[tuple[str, Call]]:
    """A teacher whose logits differ from the student's by about one step of bfloat16."""
    for name in adapter.divergences:
        student = make.normal(BATCH, LENGTH, 500, dtype=torch.bfloat16)
        noise = make.normal(BATCH, LENGTH, 500, std=0.01)
        teacher = (student.float() + noise).to(torch.bfloat16)
        yield name, make.call(adapter, student, teacher, name)


def _large(adapter: Adapter, make: Inputs) -> Iterator[tuple[str, Call]]:
    for name in adapter.divergences:
        student, teacher = make.pair()
        yield f"{name}, shifted by 10,000", make.call(adapter, student + 1e4, teacher - 1e4, name)
        yield f"{name}, spread over 300", make.call(adapter, *make.pair(std=300.0), name)
        half = make.pair(std=3000.0, dtype=torch.float16)
        yield f"{name}, spread over 3,000 in float16", make.call(adapter, *half, name)


def _sure(adapter: Adapter, make: Inputs) -> Iterator[tuple[str, Call]]:
    """Both models put all probability on one token, the same one or another; elsewhere both underflow."""
    for name in adapter.divergences:
        for where, column in (("same token", 3), ("another token", 60)):
            student, teacher = make.pair(std=1.0)
            student[..., 3] += 150
            teacher[..., column] += 150
            yield f"{name}, {where}", make.call(adapter, student, teacher, name)


def _absent(student_too: bool) -> Calls:
    """Columns of -inf: of the teacher's alone or of both."""

    def calls(adapter: Adapter, make: Inputs) -> Iterator[tuple[str, Call]]:
        for name in adapter.divergences:
            student, teacher = make.pair()
            teacher[..., [0, 5, VOCAB - 1]] = -INF
            if student_too:
                student[..., [0, 5, VOCAB - 1]] = -INF
            labels = make.labels(BATCH, LENGTH) % 50 + 10 if DIVERGENCES[name].splits_label else None
            yield name, make.call(adapter, student, teacher, name, labels=labels)

    return calls


def _nan(adapter: Adapter, make: Inputs) -> Iterator[tuple[str, Call]]:
    for side in ("student", "teacher"):
        pair = make.pair()
        pair[side == "teacher"][1, 2, 7] = math.nan
        yield side, make.call(adapter, *pair, adapter.divergences[0], reduction=_scalar(adapter))


def _scalar(adapter: Adapter) -> str:
    return next(name for name, kind in adapter.reductions.items() if kind != "none")


def _strided(adapter: Adapter, make: Inputs) -> Iterator[tuple[str, Call]]:
    for name in adapter.divergences:
        student, teacher = (make.normal(LENGTH, BATCH, VOCAB).transpose(0, 1) for _ in range(2))
        yield f"{name}, length first", make.call(adapter, student, teacher, name)
        student, teacher = (make.normal(BATCH, VOCAB, LENGTH).transpose(1, 2) for _ in range(2))
        yield f"{name}, columns apart", make.call(adapter, student, teacher, name)
        student, teacher = make.normal(BATCH, LENGTH + 1, VOCAB)[:, :-1], make.normal(1, LENGTH, 2 * VOCAB)
        teacher = teacher.expand(BATCH, -1, -1)[..., ::2]
        yield f"{name}, slices", make.call(adapter, student, teacher, name)


def _two_dtypes(adapter: Adapter, make: Inputs) -> Iterator[tuple[str, Call]]:
    for name in adapter.divergences:
        student, teacher = make.pair()
        yield f"{name}, teacher in bfloat16", make.call(adapter, student, teacher.bfloat16(), name)
        yield f"{name}, student in bfloat16", make.call(adapter, student.bfloat16(), teacher, name)


def _padded(adapter: Adapter, make: Inputs) -> Iterator[tuple[str, Call]]:
    for name in adapter.divergences:
        student, teacher = make.pair()
        student[..., 90:], teacher[..., 90:] = 50.0, math.nan
        yield name, make.call(adapter, student, teacher, name, vocab_size=90)


def _two_widths(adapter: Adapter, make: Inputs) -> Iterator[tuple[str, Call]]:
    for name in adapter.divergences:
        for wider in (0, 1):
            widths = (VOCAB, VOCAB + 7) if wider else (VOCAB + 7, VOCAB)
            student, teacher = (make.normal(BATCH, LENGTH, width) for width in widths)
            side = "teacher" if wider else "student"
            yield f"{name}, {side} wider", make.call(adapter, student, teacher, name, vocab_size=VOCAB)


def _sizes(adapter: Adapter, make: Inputs) -> Iterator[tuple[str, Call]]:
    # An identity matrix in place of a head takes the square of the vocabulary.
    for vocab in (1, 2, 1023, 1025, 4097) if adapter.from_hidden else (1, 2, 1023, 1025, 70_001):
        name = adapter.divergences[0]
        yield f"V = {vocab:,}", make.call(adapter, *make.pair(1, 2, vocab), name)


def _top_k(adapter: Adapter, make: Inputs) -> Iterator[tuple[str, Call]]:
    for tail in adapter.tails:
        for name in adapter.divergences:
            if name not in (("forward_kl",) if tail == "drop" else ("forward_kl", "reverse_kl", "jsd")):
                continue
            student, teacher = make.pair()
            logprobs, indices = torch.log_softmax(teacher, -1).topk(8)
            sparse = Sparse(indices, logprobs, tail)
            yield f"{name}, {tail}", make.call(adapter, student, sparse, name)


@dataclass(frozen=True)
class Case:
    """One question to a loss.

    Args:
        name: name of its row.
        asks: what the loss must do, as a sentence.
        calls: the calls that it makes.
        measure: how each call is run and compared.
        need: why a loss cannot express it, or None.
    """

    name: str
    asks: str
    calls: Calls
    measure: measures.Measure = measures.once
    need: Need = anything


_FINITE = "The loss and its gradient stay finite and right"
CASES = (
    Case("definition", "Loss and gradient follow the stated definition, T = 1, float32.", _plain),
    Case("parameters", "They do for parameters of 0.2 and 0.8, which tells p from q in a mixture.",
         _parameters, need=takes("parameters")),
    Case("temperature 3", "The factor that the definition states reaches the loss and the gradient.",
         _temperatures(3.0), need=takes("temperature")),
    Case("temperatures 0.05 to 100", f"{_FINITE} at T = 0.05, 0.3, 20 and 100.",
         _temperatures(0.05, 0.3, 20.0, 100.0), need=takes("temperature")),
    Case("reductions", "Each reduction divides by what its definition states.", _reductions),
    Case("cross-entropy", "A mixture with cross-entropy; the label's entry of the gradient counts by itself.",
         _mixed, need=takes("kd_ratio")),
    Case("ignored labels", "Tokens labelled -100 count neither in the loss nor in its denominator.",
         _masked, need=takes("labels")),
    Case("ignored rows hold NaN", "Rows of ignored tokens hold NaN and infinity, which must not matter.",
         _masked_nan, need=takes("labels")),
    Case("all labels ignored", "The loss is 0 and so is its gradient.", _all_masked, need=takes("labels")),
    Case("token weights", "Each token's weight counts in its loss, gradient and, for a mean, denominator.",
         _weighted, need=takes("token_weights")),
    Case("gradient accumulation", "Micro-batches with unlike numbers of tokens add up to the whole batch.",
         _uneven, measures.in_parts, _parts),
    Case("upstream gradient", "The gradient of -2.5 times the loss.", _plain, measures.scaled(-2.5)),
    Case("square of the loss", "The gradient through a function of the loss.", _plain,
         measures.through_a_square, _scalars),
    Case("backward twice", "A second backward through the same graph returns the same gradient.",
         _plain, measures.twice, _scalars),
    Case("second derivatives", "A Hessian-vector product is right, or refused, but not silently 0.",
         _plain, measures.second_derivative, _scalars),
    Case("teacher's gradient", "A teacher that requires grad gets its gradient, or none if that is stated.",
         _plain, measures.teachers_gradient, _scalars),
    Case("inputs kept", "Neither input is overwritten.", _plain, measures.inputs_kept),
    Case("float64", "Loss and gradient have the digits of their dtype.", _of_dtype(torch.float64)),
    Case("bfloat16", "Unlike models in bfloat16.", _of_dtype(torch.bfloat16)),
    Case("near-identical bfloat16", "The teacher is the student plus one step of rounding.", _near),
    Case("float16, loss scale 32,768", "Gradients neither underflow nor overflow.",
         _small_gradients, measures.scaled(2.0**15)),
    Case("large logits", f"{_FINITE} for logits of thousands, in float32 and float16.", _large),
    Case("confident models", f"{_FINITE} where nearly all probabilities underflow.", _sure),
    Case("-inf on both sides", "Columns that are -inf on both sides add nothing.",
         _absent(True), need=_infinities("student", "teacher")),
    Case("-inf in the teacher", "The loss is what the formula says, infinity included.",
         _absent(False), need=_infinities("teacher")),
    Case("NaN shows", "A NaN among the logits makes the loss NaN.", _nan, measures.nan_shows, _scalars),
    Case("strided inputs", "Transposed, sliced and expanded tensors.", _strided),
    Case("two dtypes", "One side in float32, the other in bfloat16.", _two_dtypes),
    Case("autocast", "Autocast to bfloat16 does not change the loss of float32 logits.",
         _plain, measures.under_autocast, _plain_arithmetic),
    Case("padded vocabulary", "Columns past the vocabulary hold anything and get no probability.",
         _padded, need=takes("vocab_size")),
    Case("two widths", "A student's head wider than the teacher's, or narrower, by padding.",
         _two_widths, need=takes("vocab_size")),
    Case("vocabulary sizes", "Vocabularies of 1, 2, 1,023, 1,025 and 70,001 (from hidden states 4,097).",
         _sizes),
    Case("top-K teacher", "A teacher that names 8 columns per token, with each tail that the loss has.",
         _top_k, need=_tails),
)  # fmt: skip
