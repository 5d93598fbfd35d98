"""Streams: the sums that sweep 1 collects for a divergence, over exponentials that are not normalised yet."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fastkd.backends.triton.arithmetic import TINY, fma
from fastkd.backends.triton.tiles import offset_between, row_total


class Streams(NamedTuple):
    """The functions of up to three streams. Each returns three numbers; streams that do not exist stay 0.

    - ``add(part, e, shifts, scales)``: the streams of ``part`` with those of the tile ``e`` added;
    - ``total(part, sum_s, sum_t, shifts, scales)``: the row's streams from those of each place of a stripe,
      corrected for the rounding of the shifts; ``sum_s`` and ``sum_t`` are the row's sums of exponentials;
    - ``moved(statistics, shift_s, shift_t, scales)``: the streams relative to these shifts, in logits;
    - ``normalised(stream_0, stream_1, stream_2, z_s, log_const, cross_shift, shifts, scales)``: the streams
      over the exponentials as sweep 3 computes them, and ``Row.scale_cross, scale_p, scale_q``. None for
      streams that are linear in the log-ratio.
    """

    number: int
    add: Any
    total: Any
    moved: Any
    normalised: Any = None


@triton.jit
def plus(total, weight, x, least):
    """``total + weight * x`` with ``0 * anything = 0``, also for weights below ``least``."""
    return tl.where(weight < least, total, fma(weight, x, total))


@triton.jit
def plus_log_ratio(stream, weight, e):
    """A linear stream with a tile's log-ratios added, each times an exponential."""
    return plus(stream, weight, e.relative, TINY)


@triton.jit
def linear_total(stream, exponentials, rest, shifts):
    """The row's linear stream, given the row's sum of the exponentials and their rest."""
    return (row_total(stream) - shifts.offset * exponentials) * tl.exp2(0.0 - rest)


@triton.jit
def moved_offset(statistics, shift_s, shift_t, scales):
    """The number that is added to every ``Entry.relative`` when the shifts change to these."""
    before = offset_between(statistics.logit_shift_s, statistics.logit_shift_t, scales)
    return before - offset_between(shift_s, shift_t, scales)


@triton.jit
def moved_linear(stream, z, exponent, by):
    """``sum e * x`` after every ``e`` was multiplied by ``2**exponent`` and every ``x`` had ``by`` added."""
    rescale = tl.exp2(exponent)
    return tl.where(rescale == 0.0, 0.0, rescale * (stream + z * by))


@triton.jit
def _add_nothing(part, e, shifts, scales):
    return part.stream_0, part.stream_1, part.stream_2


@triton.jit
def zero():
    """The total of a stream that does not exist."""
    return tl.full([], 0.0, tl.float32)


@triton.jit
def _no_totals(part, sum_s, sum_t, shifts, scales):
    return zero(), zero(), zero()


@triton.jit
def _nothing_moved(statistics, shift_s, shift_t, scales):
    return statistics.stream_0, statistics.stream_1, statistics.stream_2


NO_STREAMS = Streams(0, _add_nothing, _no_totals, _nothing_moved)
