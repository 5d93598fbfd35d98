"""Sweep 3 over one row pair: both gradients, each rounded once to its dtype."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fastkd.backends.triton.arithmetic import fma
from fastkd.backends.triton.row import entry
from fastkd.backends.triton.shifts import ce_exp
from fastkd.backends.triton.tiles import edges, load_sides, lower, store_tile, widen_sides


class Outputs(NamedTuple):
    """The memory for the gradients: pointers to column 0, or None."""

    student: Any
    teacher: Any
    s_stride: Any
    t_stride: Any


class Factors(NamedTuple):
    """The factors of the gradients' terms, with ``grad_scale`` and the weights."""

    kd_s: Any  # of dD/d(s/T) and dD/d(t/T_t)
    kd_t: Any
    ce_softmax: Any  # of the exponential at temperature 1
    smoothing_weight: Any  # subtracted in every column
    label_weight: Any  # subtracted at the label
    label_s: Any  # the gradients at the label, if it is split off
    label_t: Any


@triton.jit
def _write_tile(
    rows, outputs, first, tile, row, constants, factors, scales,
    DIVERGENCE: tl.constexpr, TERMS: tl.constexpr, TILE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    TEACHER: tl.constexpr = DIVERGENCE.reads_teacher
    SPLITS: tl.constexpr = DIVERGENCE.splits_label
    columns = first + tile
    s, t = load_sides(rows, columns, TEACHER, MASKED)
    s, t = widen_sides(rows, columns, s, t, SPLITS)
    s, t = lower(rows, s, t)
    e = entry(s, t, row, scales, TEACHER)
    g_s = tl.zeros_like(s)
    g_t = tl.zeros_like(s)
    if DIVERGENCE.gradients is not None:
        d_s, d_t = DIVERGENCE.gradients(e, constants, row, scales)
        unit_s, unit_t = DIVERGENCE.gradient_units(row)
        g_s = (factors.kd_s * unit_s) * d_s
        g_t = (factors.kd_t * unit_t) * d_t
    # All in float32: rounded once, by the store.
    if outputs.student is not None:
        if TERMS.cross_entropy or TERMS.z_loss:
            g_s = fma(ce_exp(e.es, s, row.shifts, TERMS.power), factors.ce_softmax, g_s)
        if TERMS.smoothing:
            g_s -= factors.smoothing_weight
        if TERMS.cross_entropy or SPLITS:  # noqa: SIM102
            # Only one tile has the label; the others skip two instructions per element.
            if (rows.label_column >= first) & (rows.label_column < first + TILE):
                at_label = factors.label_s if SPLITS else g_s - factors.label_weight
                g_s = tl.where(columns == rows.label_column, at_label, g_s)
        store_tile(outputs.student, columns, outputs.s_stride, rows.begin, rows.end, g_s, MASKED)
    if outputs.teacher is not None:
        if SPLITS:
            g_t = tl.where(columns == rows.label_column, factors.label_t, g_t)
        store_tile(outputs.teacher, columns, outputs.t_stride, rows.begin, rows.end, g_t, MASKED)


@triton.jit
def write_gradients(
    rows, outputs, tile, row, constants, factors, scales,
    DIVERGENCE: tl.constexpr, TERMS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Sweep 3.

    A gradient may share its logits' memory: a tile is read before it is written, and only by this program.
    """
    full, lead = edges(rows.begin, rows.end, TILE)
    for k in range(lead + (full * TILE < rows.end).to(tl.int32)):
        _write_tile(
            rows, outputs, tl.where(k < lead, 0, full) * TILE, tile, row, constants, factors, scales,
            DIVERGENCE, TERMS, TILE, True,
        )  # fmt: skip
    for i in range(lead, full):
        # Against the direction of the sweep before, since a cache still holds what that one read last.
        index = i if DIVERGENCE.has_sums else full - 1 - i + lead
        _write_tile(
            rows, outputs, index * TILE, tile, row, constants, factors, scales, DIVERGENCE, TERMS, TILE, False
        )


@triton.jit
def write_gradients_near_or_distant(
    rows, outputs, tile, row, constants, factors, scales, distant,
    DIVERGENCE: tl.constexpr, TERMS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """``write_gradients`` of a divergence whose distant rows have formulas of their own."""
    DISTANT: tl.constexpr = DIVERGENCE.distant.formulas
    if distant:
        write_gradients(rows, outputs, tile, row, constants, factors, scales, DISTANT, TERMS, TILE)
    else:
        write_gradients(rows, outputs, tile, row, constants, factors, scales, DIVERGENCE, TERMS, TILE)
