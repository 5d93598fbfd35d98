"""The forward sweeps over one row pair: log-sum-exps and divergence sums, online and per lane."""

from __future__ import annotations

import triton
import triton.language as tl

from fastkd.backends.triton.divergences import streamed_term, summed_terms
from fastkd.backends.triton.tiles import LN2, LOG2E, NEG_INF, finite_shift, lane_max, lane_sum, load_tile


@triton.jit
def unit_exp(e, distance, POWER: tl.constexpr):
    """``exp(distance)``, given ``e = exp(distance / T)``: a power of it where T is 1 or 2."""
    if POWER == 1:
        return e
    elif POWER == 2:
        return e * e
    else:
        return tl.exp2(distance * LOG2E)


@triton.jit
def shared_shifts(max_s, max_t, c_s, c_t):
    """What to subtract from the logits of each row before the exponential.

    At equal temperatures both rows take the larger maximum unless the maxima lie far apart (16 powers of
    two), so that equal logits give bitwise equal exponentials and ``q - p`` keeps its digits.
    """
    share = (c_s == c_t) & (tl.abs(max_s - max_t) * c_s < 16.0)
    larger = tl.maximum(max_s, max_t)
    return tl.where(share, larger, max_s), tl.where(share, larger, max_t)


@triton.jit
def _online(m, z, x, c):
    """One tile of an online softmax.

    ``m`` is the running maximum and ``z`` the running sum of ``2**((x - m) * c)``, both ``[LANES]``.
    Returns them updated, the factor that old sums take, the exponents of the tile and their powers.
    """
    new = tl.maximum(m, lane_max(x))
    shift = finite_shift(new)
    rescale = tl.exp2((m - shift) * c)
    exponent = (x - shift[None, :, None]) * c
    e = tl.exp2(exponent)
    return new, z * rescale + lane_sum(e), rescale, exponent, e


@triton.jit
def _moved(weighted, z, rescale, by):
    """Running ``sum e * log-ratio`` after its exponentials shrank and every log-ratio grew ``by``."""
    return tl.where(rescale == 0.0, 0.0, rescale * (weighted + z * by))


@triton.jit
def _update(
    m_s, z_s, z_1, sum_s, m_t, z_t, weighted, s, t, columns, vocab, c_s, c_t,
    DIVERGENCE: tl.constexpr, UNIT: tl.constexpr, SMOOTHING: tl.constexpr, POWER: tl.constexpr,
):  # fmt: skip
    new_s, next_z_s, rescale_s, u, e_s = _online(m_s, z_s, s, c_s)
    if UNIT:
        shift = finite_shift(new_s)
        e_1 = unit_exp(e_s, s - shift[None, :, None], POWER)
        z_1 = z_1 * unit_exp(rescale_s, m_s - shift, POWER) + lane_sum(e_1)
    if SMOOTHING:
        sum_s += lane_sum(tl.where(columns < vocab, s, 0.0))
    if DIVERGENCE is not None:
        new_t, next_z_t, rescale_t, v, e_t = _online(m_t, z_t, t, c_t)
        if DIVERGENCE != "jsd":
            # v - u grows by this as the shifts of both sides move.
            by = (finite_shift(m_t) - finite_shift(new_t)) * c_t
            by -= (finite_shift(m_s) - finite_shift(new_s)) * c_s
            if DIVERGENCE == "forward_kl":
                weighted = _moved(weighted, z_t, rescale_t, by)
            else:
                weighted = _moved(weighted, z_s, rescale_s, -by)
            weighted += lane_sum(streamed_term(e_s, e_t, u, v, DIVERGENCE))
        m_t, z_t = new_t, next_z_t
    return new_s, next_z_s, z_1, sum_s, m_t, z_t, weighted


@triton.jit
def row_statistics(
    student, teacher, tile, vocab, s_stride, t_stride, c_s, c_t,
    DIVERGENCE: tl.constexpr, UNIT: tl.constexpr, SMOOTHING: tl.constexpr, POWER: tl.constexpr,
    LANES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """First sweep. Returns, as scalars, of the student the maximum, the sum of exponentials relative to it at
    temperature T and at temperature 1, and the plain sum; of the teacher the maximum and the sum; and the
    streamed divergence in nats (0 for ``jsd``)."""
    m_s = tl.full([LANES], NEG_INF, tl.float32)
    z_s = tl.zeros([LANES], tl.float32)
    z_1 = tl.zeros([LANES], tl.float32)
    sum_s = tl.zeros([LANES], tl.float32)
    m_t = tl.full([LANES], NEG_INF, tl.float32)
    z_t = tl.zeros([LANES], tl.float32)
    weighted = tl.zeros([LANES], tl.float32)

    full = vocab // TILE
    for i in range(full):
        columns = i * TILE + tile
        s = load_tile(student, columns, s_stride, vocab, False)
        t = s
        if DIVERGENCE is not None:
            t = load_tile(teacher, columns, t_stride, vocab, False)
        m_s, z_s, z_1, sum_s, m_t, z_t, weighted = _update(
            m_s, z_s, z_1, sum_s, m_t, z_t, weighted, s, t, columns, vocab, c_s, c_t,
            DIVERGENCE, UNIT, SMOOTHING, POWER,
        )  # fmt: skip
    if full * TILE < vocab:
        columns = full * TILE + tile
        s = load_tile(student, columns, s_stride, vocab, True)
        t = s
        if DIVERGENCE is not None:
            t = load_tile(teacher, columns, t_stride, vocab, True)
        m_s, z_s, z_1, sum_s, m_t, z_t, weighted = _update(
            m_s, z_s, z_1, sum_s, m_t, z_t, weighted, s, t, columns, vocab, c_s, c_t,
            DIVERGENCE, UNIT, SMOOTHING, POWER,
        )  # fmt: skip

    # Lanes meet: everything moves to the shift of the whole row.
    max_s = finite_shift(tl.max(m_s, axis=0))
    rescale_s = tl.exp2((m_s - max_s) * c_s)
    total_s = tl.sum(z_s * rescale_s, axis=0)
    total_1 = tl.sum(z_1 * unit_exp(rescale_s, m_s - max_s, POWER), axis=0)
    max_t = finite_shift(tl.max(m_t, axis=0))
    rescale_t = tl.exp2((m_t - max_t) * c_t)
    total_t = tl.sum(z_t * rescale_t, axis=0)
    by = (finite_shift(m_t) - max_t) * c_t - (finite_shift(m_s) - max_s) * c_s
    divergence = 0.0
    if DIVERGENCE == "forward_kl":
        mean = tl.sum(_moved(weighted, z_t, rescale_t, by), axis=0) / total_t
        divergence = mean * LN2 + tl.log(total_s / total_t)
    elif DIVERGENCE == "reverse_kl":
        mean = tl.sum(_moved(weighted, z_s, rescale_s, -by), axis=0) / total_s
        divergence = mean * LN2 + tl.log(total_t / total_s)
    return max_s, total_s, total_1, tl.sum(sum_s, axis=0), max_t, total_t, divergence


@triton.jit
def probabilities(s, t, shift_s, shift_t, inverse_s, inverse_t, log_const, c_s, c_t):
    """``(student exponential, q, p, log p - log q)`` of a tile, the log-sum-exps being known."""
    u = (s - shift_s) * c_s
    v = (t - shift_t) * c_t
    e_s = tl.exp2(u)
    return e_s, e_s * inverse_s, tl.exp2(v) * inverse_t, tl.fma(v - u, LN2, log_const)


@triton.jit
def row_sums(
    student, teacher, tile, vocab, s_stride, t_stride, c_s, c_t,
    shift_s, shift_t, inverse_s, inverse_t, log_const, beta,
    DIVERGENCE: tl.constexpr, LANES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Second sweep of a divergence that is not linear in the log-ratio: its two sums over the row."""
    sum_a = tl.zeros([LANES], tl.float32)
    sum_b = tl.zeros([LANES], tl.float32)
    # Backwards: what the sweep before read last is what a cache still holds.
    full = vocab // TILE
    if full * TILE < vocab:
        columns = full * TILE + tile
        s = load_tile(student, columns, s_stride, vocab, True)
        t = load_tile(teacher, columns, t_stride, vocab, True)
        _, q, p, ratio = probabilities(s, t, shift_s, shift_t, inverse_s, inverse_t, log_const, c_s, c_t)
        a, b = summed_terms(p, q, ratio, beta, DIVERGENCE)
        sum_a += lane_sum(a)
        sum_b += lane_sum(b)
    for i in range(full):
        columns = (full - 1 - i) * TILE + tile
        s = load_tile(student, columns, s_stride, vocab, False)
        t = load_tile(teacher, columns, t_stride, vocab, False)
        _, q, p, ratio = probabilities(s, t, shift_s, shift_t, inverse_s, inverse_t, log_const, c_s, c_t)
        a, b = summed_terms(p, q, ratio, beta, DIVERGENCE)
        sum_a += lane_sum(a)
        sum_b += lane_sum(b)
    return tl.sum(sum_a, axis=0), tl.sum(sum_b, axis=0)
