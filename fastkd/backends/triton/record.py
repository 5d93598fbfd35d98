"""A row's record: its statistics as float64, for phases between which somebody else adds them up.

The layout is that of ``csrc/params.h``. What the kernels hold relative to the largest logits, so that float32
suffices, the record holds as it is.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastkd.backends.triton.compile_time import constant
from fastkd.backends.triton.divergences import has_cross, has_forward_stream
from fastkd.backends.triton.statistics import Statistics, relative_to_maxima
from fastkd.backends.triton.tiles import finite_shift, offset_between

COLUMNS = constant(19)
SUM_0 = constant(17)


@triton.jit
def _absolute(stream, z, offset, scales):
    """``sum e * (x - y)`` in nats, from that relative to the largest logits."""
    return (stream.to(tl.float64) + z.to(tl.float64) * offset.to(tl.float64)) * scales.to_nats


@triton.jit
def _relative(stream, z, offset, scales):
    return (stream / scales.to_nats - z * offset.to(tl.float64)).to(tl.float32)


@triton.jit
def write_record(
    record, found, cross_shift, label_s, label_t, begin, vocab, scales, DIVERGENCE: tl.constexpr
):
    found = relative_to_maxima(found, scales, DIVERGENCE)
    shift_s, shift_t = found.shift_s, found.shift_t
    offset = offset_between(shift_s, shift_t, scales)
    stream_0, stream_1 = found.stream_0.to(tl.float64), found.stream_1.to(tl.float64)
    if has_forward_stream(DIVERGENCE):
        stream_0 = _absolute(found.stream_0, found.z_t, offset, scales)
    if DIVERGENCE == "reverse_kl":
        stream_0 = _absolute(found.stream_0, found.z_s, offset, scales)
    if DIVERGENCE == "jeffreys":
        stream_1 = _absolute(found.stream_1, found.z_s, offset, scales)
    z_s, z_t = found.z_s.to(tl.float64), found.z_t.to(tl.float64)
    tl.store(record + 0, found.max_s)
    tl.store(record + 1, found.max_t)
    tl.store(record + 2, z_s)
    tl.store(record + 3, z_t)
    tl.store(record + 4, found.z_1)
    tl.store(record + 5, stream_0)
    tl.store(record + 6, stream_1)
    tl.store(record + 7, found.stream_2)
    tl.store(record + 8, cross_shift)
    tl.store(record + 9, found.logit_sum)
    tl.store(record + 10, label_s)
    tl.store(record + 11, label_t)
    tl.store(record + 12, found.moment_s.to(tl.float64) / scales.c_s + z_s * shift_s)
    tl.store(record + 13, found.moment_t.to(tl.float64) / scales.c_t + z_t * shift_t)
    tl.store(record + 14, found.arg_s - begin)
    tl.store(record + 15, found.arg_t - begin)
    tl.store(record + 16, vocab)


@triton.jit
def read_record(record, scales, DIVERGENCE: tl.constexpr):
    """``(Statistics, cross_shift, label_s, label_t, columns)``"""
    max_s, max_t = tl.load(record + 0).to(tl.float32), tl.load(record + 1).to(tl.float32)
    z_s, z_t = tl.load(record + 2), tl.load(record + 3)
    shift_s, shift_t = finite_shift(max_s), finite_shift(max_t)
    offset = offset_between(shift_s, shift_t, scales)
    stream_0, stream_1 = tl.load(record + 5), tl.load(record + 6)
    cross_shift = tl.load(record + 8)
    if has_cross(DIVERGENCE):
        # What float32 leaves of the shift goes into the sum.
        kept = cross_shift.to(tl.float32)
        stream_0 = stream_0.to(tl.float32) * tl.exp2((cross_shift - kept).to(tl.float32))
        cross_shift = kept
    elif DIVERGENCE == "reverse_kl":
        stream_0 = _relative(stream_0, z_s, offset, scales)
    else:
        stream_0 = _relative(stream_0, z_t, offset, scales)
    if DIVERGENCE == "jeffreys":
        stream_1 = _relative(stream_1, z_s, offset, scales)
    moment_s = (tl.load(record + 12) - z_s * shift_s) * scales.c_s
    moment_t = (tl.load(record + 13) - z_t * shift_t) * scales.c_t
    found = Statistics(
        shift_s, shift_t, shift_s, z_s.to(tl.float32), z_t.to(tl.float32), tl.load(record + 4).to(tl.float32),
        stream_0.to(tl.float32), stream_1.to(tl.float32), tl.load(record + 7).to(tl.float32),
        tl.load(record + 9).to(tl.float32), moment_s.to(tl.float32), moment_t.to(tl.float32),
        max_s, max_t, tl.load(record + 14).to(tl.int64), tl.load(record + 15).to(tl.int64),
    )  # fmt: skip
    label_s, label_t = tl.load(record + 10).to(tl.float32), tl.load(record + 11).to(tl.float32)
    return found, cross_shift.to(tl.float32), label_s, label_t, tl.load(record + 16).to(tl.float32)
