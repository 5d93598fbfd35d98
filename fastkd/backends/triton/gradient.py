"""The last sweep over one row pair: gradients, every statistic being known."""

from __future__ import annotations

import triton
import triton.language as tl

from fastkd.backends.triton.divergences import gradients
from fastkd.backends.triton.statistics import probabilities, unit_exp
from fastkd.backends.triton.tiles import load_tile, store_tile


@triton.jit
def _tile_gradients(
    student, teacher, grad_student, grad_teacher, columns, vocab, s_stride, t_stride, gs_stride, gt_stride,
    c_s, c_t, max_s, shift_s, shift_t, inverse_s, inverse_t, log_const, sum_a, sum_b, beta,
    kd_s, kd_t, unit_factor, uniform, hot, label_column,
    DIVERGENCE: tl.constexpr, UNIT: tl.constexpr, CE: tl.constexpr, POWER: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    s = load_tile(student, columns, s_stride, vocab, MASKED)
    t = s
    if DIVERGENCE is not None:
        t = load_tile(teacher, columns, t_stride, vocab, MASKED)
    e_s, q, p, ratio = probabilities(s, t, shift_s, shift_t, inverse_s, inverse_t, log_const, c_s, c_t)
    g_s = tl.zeros_like(s)
    g_t = tl.zeros_like(s)
    if DIVERGENCE is not None:
        d_s, d_t = gradients(p, q, ratio, sum_a, sum_b, beta, DIVERGENCE)
        g_s = kd_s * d_s
        g_t = kd_t * d_t
    if grad_student is not None:
        if UNIT:
            g_s = tl.fma(unit_exp(e_s, s - max_s, POWER), unit_factor, g_s)
        if CE:
            g_s -= uniform
            g_s = tl.where(columns == label_column, g_s - hot, g_s)  # in float32: rounded once, by the store
        store_tile(grad_student, columns, gs_stride, vocab, g_s, MASKED)
    if grad_teacher is not None:
        store_tile(grad_teacher, columns, gt_stride, vocab, g_t, MASKED)


@triton.jit
def row_gradients(
    student, teacher, grad_student, grad_teacher, tile, vocab, s_stride, t_stride, gs_stride, gt_stride,
    c_s, c_t, max_s, shift_s, shift_t, inverse_s, inverse_t, log_const, sum_a, sum_b, beta,
    kd_s, kd_t, unit_factor, uniform, hot, label_column,
    DIVERGENCE: tl.constexpr, UNIT: tl.constexpr, CE: tl.constexpr, POWER: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Store ``kd * dD + unit_factor * exp(s - max) - uniform``, less ``hot`` at the label.

    A gradient may lie in its logits' memory: a tile is read before it is written, and by nobody else.
    """
    full = vocab // TILE
    if full * TILE < vocab:
        _tile_gradients(
            student, teacher, grad_student, grad_teacher, full * TILE + tile, vocab,
            s_stride, t_stride, gs_stride, gt_stride,
            c_s, c_t, max_s, shift_s, shift_t, inverse_s, inverse_t, log_const, sum_a, sum_b, beta,
            kd_s, kd_t, unit_factor, uniform, hot, label_column, DIVERGENCE, UNIT, CE, POWER, True,
        )  # fmt: skip
    for i in range(full):
        # Against the direction of the sweep before: what that one read last, a cache still holds.
        index = i if DIVERGENCE == "jsd" else full - 1 - i
        _tile_gradients(
            student, teacher, grad_student, grad_teacher, index * TILE + tile, vocab,
            s_stride, t_stride, gs_stride, gt_stride,
            c_s, c_t, max_s, shift_s, shift_t, inverse_s, inverse_t, log_const, sum_a, sum_b, beta,
            kd_s, kd_t, unit_factor, uniform, hot, label_column, DIVERGENCE, UNIT, CE, POWER, False,
        )  # fmt: skip
