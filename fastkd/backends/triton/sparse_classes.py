"""The divergence of two distributions over a few classes: a dense row pair that fits one tile.

A sparse teacher's classes are its entries and, where the tail has one, all other columns. The formulas are
those of dense rows. ``fastkd/backends/sparse.py`` does the same in torch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fastkd.backends.sparse import LEAST_REST
from fastkd.backends.triton.arithmetic import expm1
from fastkd.backends.triton.compile_time import constant
from fastkd.backends.triton.divergences.arithmetic import exists
from fastkd.backends.triton.row import entry, row_of
from fastkd.backends.triton.shifts import raw_entry, shifts_of
from fastkd.backends.triton.sweep1_statistics import (
    FAR,
    Sums,
    cross_exponent,
    guess,
    largest,
    statistics_of,
    with_powers,
)
from fastkd.backends.triton.tiles import NEG_INF, row_total

LEAST = constant(LEAST_REST)


class Classes(NamedTuple):
    """A row's divergence and its gradients; those of classes are arbitrary where a class does not exist."""

    value: Any
    coefficient: Any  # the factor of q in the gradient by s / T, at all columns but the entries
    by_student: Any  # tiles: the gradients by s / T and by the log-probabilities at the entries
    by_logprobs: Any


@triton.jit
def at(x, place, index):
    """The number at one place of a tile."""
    return row_total(tl.where(place == index, x, 0.0))


@triton.jit
def log_rest(log_masses, place):
    """The logarithm of 1 minus the sum of the masses with these logarithms, at least that of ``LEAST``.

    If one mass is nearly 1, only expm1 keeps the digits of 1 minus it.
    """
    top = largest(log_masses)
    first = tl.min(tl.min(tl.where(log_masses == top, place, FAR), axis=1), axis=0)
    others = row_total(tl.where(place == first, 0.0, tl.exp(log_masses)))
    rest = 0.0 - expm1(top) - others
    return tl.log(tl.where(rest < LEAST, LEAST, rest))  # not maximum, which would lose a NaN


@triton.jit
def entropy(logs):
    """The entropy of the distribution with these logarithms, up to a constant; 0 if all are -inf."""
    top = largest(logs)
    away = logs - top
    e = tl.exp(away)
    z = row_total(e)
    found = tl.log(z) - row_total(tl.where(e == 0.0, 0.0, e * away)) / z
    return tl.where(top == NEG_INF, 0.0, found)


@triton.jit
def _distant_cross(e, shifts, scales):
    """``sweep1_statistics.distant_cross`` of one tile."""
    exponent = cross_exponent(e, scales)
    top = largest(exponent)
    shift = tl.where(tl.abs(top) == float("inf"), 0.0, top)
    by_s, by_t = 0.0 - shifts.rest_s, 0.0 - shifts.rest_t
    return row_total(tl.exp2(exponent - shift)) * tl.exp2(scales.b * by_s + scales.a * by_t), shift


@triton.jit
def _distant_sums(e, row, DIVERGENCE: tl.constexpr):
    """``sweep2_sums.find_distant_sums`` of one tile."""
    zeros = tl.zeros_like(e.xs)
    top = largest(exists(e, DIVERGENCE.distant.exponent(e, row), NEG_INF))
    shift = tl.where(top == NEG_INF, 0.0, top)
    sum_0, sum_1 = DIVERGENCE.distant.add_sums(zeros, zeros, e, row, shift)
    return tl.log2(row_total(sum_0)) + shift, tl.log2(row_total(sum_1)) + shift


@triton.jit
def _gradients(e, constants, row, scales, DIVERGENCE: tl.constexpr):
    by_student, by_teacher = DIVERGENCE.gradients(e, constants, row, scales)
    unit_s, unit_t = DIVERGENCE.gradient_units(row)
    return by_student * unit_s, by_teacher * unit_t


@triton.jit
def _divergence(log_q, log_p, scales, DIVERGENCE: tl.constexpr, TERMS: tl.constexpr):
    """The divergence of the distributions with these logarithms, up to a constant each, at the temperatures
    of ``scales``, and the gradients by the logarithms over their temperatures. A class that is -inf on both
    sides does not exist."""
    zeros = tl.zeros_like(log_q)
    nowhere = zeros.to(tl.int32)
    origin_s, origin_t, shift_s, shift_t, shift_ce = guess(largest(log_q), largest(log_p), scales, True)
    shifts = shifts_of(shift_s, shift_t, shift_ce, scales)
    s, t = log_q - origin_s, log_p - origin_t
    e = raw_entry(s, t, shifts, scales, True)
    part = Sums(e.es, e.et, zeros, zeros, zeros, zeros, zeros, zeros, zeros, log_q, log_p, nowhere, nowhere)
    stream_0, stream_1, stream_2 = DIVERGENCE.streams.add(part, e, shifts, scales)
    part = Sums(
        e.es, e.et, zeros, stream_0, stream_1, stream_2, zeros, zeros, zeros, log_q, log_p, nowhere, nowhere
    )
    statistics = statistics_of(part, shifts, scales, DIVERGENCE, TERMS)
    cross, cross_shift = statistics.stream_0, 0.0
    if DIVERGENCE.has_cross:
        in_range = (cross > 1e-18) & (cross < 1e30)  # False for NaN
        if not in_range:
            cross, cross_shift = _distant_cross(e, shifts, scales)
    statistics = with_powers(statistics, cross, statistics.stream_1, statistics.stream_2)
    row, statistics = row_of(statistics, cross_shift, scales, DIVERGENCE)
    e = entry(s, t, row, scales, True)
    sum_0 = 0.0
    sum_1 = 0.0
    if DIVERGENCE.has_sums:
        sum_0, sum_1 = DIVERGENCE.add_sums(zeros, zeros, e, row, scales)
        sum_0, sum_1 = DIVERGENCE.normalised_sums(row_total(sum_0), row_total(sum_1), row)
    if DIVERGENCE.has_distant:  # noqa: SIM102
        if DIVERGENCE.distant.is_distant(sum_0):
            sum_0, sum_1 = _distant_sums(e, row, DIVERGENCE)
    value, constants = DIVERGENCE.evaluate(statistics, 0.0, sum_0, sum_1, row, scales)
    by_student, by_teacher = _gradients(e, constants, row, scales, DIVERGENCE)
    if DIVERGENCE.has_distant:
        DISTANT: tl.constexpr = DIVERGENCE.distant.formulas
        if sum_0 < 0.0:
            by_student, by_teacher = _gradients(e, constants, row, scales, DISTANT)
    return value, by_student, by_teacher


@triton.jit
def find_classes(
    log_q, log_p, place, entries, scales, to_nats_t,
    DIVERGENCE: tl.constexpr, TERMS: tl.constexpr, TAIL: tl.constexpr, HAS_REST: tl.constexpr,
):  # fmt: skip
    """``(Classes, the teacher's entropy)`` of a row with at least one entry.

    - ``log_q, log_p``: the logarithms at the entries, -inf in all other places of the tile;
    - ``place``: int32, the tile's places, of which the class of all other columns gets number ``entries``;
    - ``scales``: those of the classes' temperatures, and ``to_nats_t`` the reciprocal of the teacher's;
    - ``HAS_REST``: whether the student's other columns form a class.
    """
    if TAIL == "drop":
        weight = tl.exp(log_p)
        ratio = tl.where(log_p == NEG_INF, 0.0, log_p - log_q)
        mass = row_total(weight)
        value = row_total(tl.where(weight == 0.0, 0.0, weight * ratio))
        found = Classes(value, mass, mass * tl.exp(log_q) - weight, weight * (ratio + 1.0))
        return found, entropy(log_p)
    else:
        rest_p, rest_q = NEG_INF, 0.0
        p, q = log_p, log_q
        if HAS_REST:
            rest_q = log_rest(log_q, place)
            q = tl.where(place == entries, rest_q, log_q)
        if TAIL == "bucket":
            rest_p = log_rest(log_p, place)
            p = tl.where(place == entries, rest_p, log_p)
        value, by_student, by_teacher = _divergence(q, p, scales, DIVERGENCE, TERMS)
        by_student *= scales.to_nats
        by_teacher *= to_nats_t
        coefficient = 0.0
        if HAS_REST:
            coefficient = at(by_student, place, entries) / tl.exp(rest_q)
        if TAIL == "bucket":
            # The rest's mass is 1 minus that of the entries, so each log-probability also changes the rest.
            by_teacher -= tl.exp(log_p) * (at(by_teacher, place, entries) / tl.exp(rest_p))
        return Classes(value, coefficient, by_student, by_teacher), entropy(p * to_nats_t)
