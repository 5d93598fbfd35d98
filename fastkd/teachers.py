"""Teachers other than a plain tensor of logits: hidden states with a head, and a few columns per token."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class HiddenTeacher:
    """A teacher given by its last hidden states and its output head.

    The teacher's logits are ``hidden @ weight.T + bias``. The losses compute them a few rows at a time and
    never hold all of them (except under ``torch.func``'s transforms and forward-mode AD).

    Args:
        hidden: ``(..., H_t)``, with the leading shape of the student's logits or hidden states.
        weight: ``(V_t, H_t)``, of the same dtype as ``hidden``.
        bias: ``(V_t,)`` or None.
        logit_scale: factor on the logits, applied after the bias.
        logit_softcap: ``c`` in ``c * tanh(logits / c)``, applied after the scale; None for no cap.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    logit_scale: float = 1.0
    logit_softcap: float | None = None


TAILS = ("renormalize", "bucket", "drop")
SUPPORTS = ("teacher", "student", "union")


@dataclass(frozen=True, eq=False)
class SparseTeacher:
    """A teacher given by ``K`` columns per token, as a cache of its outputs stores it.

    The losses never expand it to a ``(tokens, vocab)`` tensor. It supports every divergence except
    ``"decoupled"``; with ``tail="drop"`` only ``"forward_kl"``.

    Args:
        indices: ``(..., K)`` int64 or int32, with the leading shape of the student's logits. With ``group``
            they count the columns of the whole vocabulary.
        logprobs: ``(..., K)``, float32, bfloat16, float16 or float64. An entry of -inf is absent, and its
            index may be anything; tokens with fewer than ``K`` entries are padded in this way.
        tail: how the loss treats the teacher's probability in all other columns.

            - ``"renormalize"`` ignores it. The teacher is ``softmax(logprobs / T_t)`` over its entries.
              Divergences that are finite where the teacher has no probability compare it with the student's
              softmax over the whole vocabulary. The others, and ``jsd``, compare it with the student
              renormalised over the same entries. ``docs/losses.md`` lists both kinds.
            - ``"bucket"`` makes it one more class on both sides, which stands for all other columns. The
              classes are formed at temperature 1, where the probability of that class is known on both
              sides: 1 minus the sum over the entries, and at least 2**-24. At other temperatures the
              logarithms of the ``K + 1`` probabilities are divided by ``T_t`` (teacher) and ``T`` (student)
              and normalised again. Probabilities that sum to more than 1, beyond their rounding, are an
              error.
            - ``"drop"`` ignores it and uses the weights ``w = exp(logprobs)`` as they are: the divergence is
              ``sum w (log w - log q)``, which needs temperature 1 and may be negative. With the weights of
              random-sampling KD (Anshumann et al. 2025), its expected gradient is that of the whole teacher.

    On a CPU, an index out of range raises ``IndexError``; a repeated index, or with ``"bucket"`` a sum above
    1, raises ``ValueError``. On a GPU each of these makes that token's loss NaN. A gradient flows to
    ``logprobs`` if they require grad.
    """

    indices: Tensor
    logprobs: Tensor
    tail: str = "renormalize"

    @classmethod
    def from_logits(
        cls,
        teacher: Tensor | HiddenTeacher,
        k: int,
        *,
        student: Tensor | HiddenTeacher | None = None,
        support: str = "teacher",
        tail: str = "renormalize",
        vocab_size: int | None = None,
    ) -> SparseTeacher:
        """The ``k`` most likely columns of each token, with the teacher's log-probabilities at temperature 1.

        On-policy distillation with the reverse KL needs the columns that the student finds likely:
        ``from_logits(teacher_logits, 64, student=student_logits, support="student", tail="bucket")``.

        Args:
            teacher: logits ``(..., V_t)``, or a :class:`HiddenTeacher`. A gradient flows to it.
            k: columns per token and side, from 1 to the size of the vocabulary.
            student: logits ``(..., V_s)``, or hidden states and a head in a :class:`HiddenTeacher`; needed
                for the supports ``"student"`` and ``"union"``. It only selects columns and gets no gradient.
            support: the side whose most likely columns are selected: ``"teacher"``, ``"student"`` or
                ``"union"`` (``2 k`` entries, of which a column that both sides selected is present once). A
                column to which the teacher gives no probability becomes an absent entry.
            tail: the ``tail`` of the result.
            vocab_size: columns at or beyond it are padding. By default all of the teacher's columns are
                used, or with a student's support as many as the narrower side has.

        Raises:
            ValueError: an unknown support or tail, ``k`` outside the vocabulary, a missing student, or
                leading shapes that differ.
        """
        return _most_likely(teacher, k, student, support, tail, vocab_size)


# About how many logits are held at once while the largest are selected.
CHUNK_ELEMENTS = 2**24


def head_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None
) -> Tensor:
    """The logits ``(..., V)`` of hidden states ``(..., H)`` and a head, in plain torch."""
    logits = torch.nn.functional.linear(hidden, weight, bias) * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _head_of(source: Tensor | HiddenTeacher) -> tuple[Tensor, int]:
    """``(..., V)`` logits or ``(..., H)`` hidden states, and the number of columns."""
    if isinstance(source, HiddenTeacher):
        return source.hidden, source.weight.shape[0]
    return source, source.shape[-1]


def _logits(source: Tensor | HiddenTeacher, rows: slice, vocab: int) -> Tensor:
    """``(n, vocab)`` logits of these rows in float32 or wider."""
    flat = _head_of(source)[0].flatten(0, -2)[rows]
    if isinstance(source, HiddenTeacher):
        bias = None if source.bias is None else source.bias[:vocab]
        flat = head_logits(flat, source.weight[:vocab], bias, source.logit_scale, source.logit_softcap)
    flat = flat[:, :vocab]
    return flat if flat.dtype == torch.float64 else flat.float()


def _most_likely(
    teacher: Tensor | HiddenTeacher,
    k: int,
    student: Tensor | HiddenTeacher | None,
    support: str,
    tail: str,
    vocab_size: int | None,
) -> SparseTeacher:
    """See :meth:`SparseTeacher.from_logits`."""
    from fastkd.losses import checks  # imported here, since checks imports this module

    checks.one_of("support", support, SUPPORTS)
    checks.one_of("tail", tail, TAILS)
    hidden, columns = _head_of(teacher)
    if support != "teacher":
        if student is None:
            raise ValueError(f"support={support!r} asks for the student's logits: pass student=")
        of_student, student_columns = _head_of(student)
        checks.leading_shape("teacher", hidden.shape[:-1], of_student.shape[:-1])
        columns = min(columns, student_columns)
    vocab = columns if vocab_size is None else checks.vocabulary(columns, columns, vocab_size)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= vocab:
        raise ValueError(f"k must be an int in [1, {vocab}], got {k!r}")
    leading, tokens = hidden.shape[:-1], math.prod(hidden.shape[:-1])
    step = max(1, CHUNK_ELEMENTS // vocab)
    found = []
    for start in range(0, max(tokens, 1), step):
        rows = slice(start, start + step)
        logits = _logits(teacher, rows, vocab)
        chosen = []
        if support != "student":
            chosen.append(logits.detach().topk(k, -1).indices)
        if support != "teacher" and student is not None:
            with torch.no_grad():
                chosen.append(_logits(student, rows, vocab).topk(k, -1).indices)
        indices = torch.cat(chosen, -1)
        logprobs = logits.gather(-1, indices) - torch.logsumexp(logits, -1, keepdim=True)
        if support == "union":
            repeated = (chosen[1][:, :, None] == chosen[0][:, None, :]).any(-1)
            absent = torch.cat([torch.zeros_like(repeated), repeated], -1)
            logprobs = logprobs.masked_fill(absent, -math.inf)
        found.append((indices, logprobs))
    indices, logprobs = (torch.cat(parts).view(*leading, -1) for parts in zip(*found, strict=True))
    return SparseTeacher(indices, logprobs, tail)
