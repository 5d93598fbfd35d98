"""Sweep 2 over one row pair: the divergence's sums that need both log-sum-exps."""

from __future__ import annotations

import triton
import triton.language as tl

from fastkd.backends.triton.divergences.arithmetic import exists
from fastkd.backends.triton.row import entry
from fastkd.backends.triton.tiles import (
    NEG_INF,
    edges,
    load_sides,
    load_stripes,
    lower,
    row_total,
    widen,
)


@triton.jit
def _add(rows, s, t, sum_0, sum_1, row, scales, DIVERGENCE: tl.constexpr):
    """The sums with those of a stripe of logits added."""
    s, t = lower(rows, widen(s), widen(t))
    return DIVERGENCE.add_sums(sum_0, sum_1, entry(s, t, row, scales, True), row, scales)


@triton.jit
def find_sums(
    rows, stripe, row, scales,
    DIVERGENCE: tl.constexpr, REPEAT: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The sums over the row, for a divergence that has some."""
    STRIPE: tl.constexpr = LANES * WIDTH
    TILE: tl.constexpr = REPEAT * STRIPE
    sum_0 = tl.zeros([LANES, WIDTH], tl.float32)
    sum_1 = tl.zeros([LANES, WIDTH], tl.float32)
    full, lead = edges(rows.begin, rows.end, TILE)
    # Backwards, since a cache still holds what sweep 1 read last.
    count = lead * REPEAT + tl.cdiv(rows.end - full * TILE, STRIPE)
    for edge in range(count):
        first = tl.where(edge < lead * REPEAT, edge, edge + (full - lead) * REPEAT) * STRIPE
        s, t = load_sides(rows, first + stripe, True, True)
        sum_0, sum_1 = _add(rows, s, t, sum_0, sum_1, row, scales, DIVERGENCE)
    for i in range(lead, full):
        loaded = load_stripes(rows, (full - 1 - i + lead) * TILE, stripe, STRIPE, REPEAT, True)
        for k in tl.static_range(REPEAT):
            sum_0, sum_1 = _add(rows, loaded[k][0], loaded[k][1], sum_0, sum_1, row, scales, DIVERGENCE)
    return DIVERGENCE.normalised_sums(row_total(sum_0), row_total(sum_1), row)


@triton.jit
def _distant_entry(rows, first, stripe, row, scales):
    s, t = load_sides(rows, first + stripe, True, True)
    s, t = lower(rows, widen(s), widen(t))
    return entry(s, t, row, scales, True)


@triton.jit
def find_distant_sums(
    rows, stripe, row, scales, DIVERGENCE: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr
):
    """The logarithms to base 2 of a distant row's sums. This is rare, so every stripe has a mask."""
    tops = tl.full([LANES, WIDTH], NEG_INF, tl.float32)
    for first in range(0, rows.end, LANES * WIDTH):
        e = _distant_entry(rows, first, stripe, row, scales)
        tops = tl.maximum(tops, exists(e, DIVERGENCE.distant.exponent(e, row), NEG_INF))
    top = tl.max(tl.max(tops, axis=1), axis=0)
    shift = tl.where(top == NEG_INF, 0.0, top)
    sum_0 = tl.zeros([LANES, WIDTH], tl.float32)
    sum_1 = tl.zeros([LANES, WIDTH], tl.float32)
    for first in range(0, rows.end, LANES * WIDTH):
        e = _distant_entry(rows, first, stripe, row, scales)
        sum_0, sum_1 = DIVERGENCE.distant.add_sums(sum_0, sum_1, e, row, shift)
    return tl.log2(row_total(sum_0)) + shift, tl.log2(row_total(sum_1)) + shift
