"""The kernel of the fused loss for a sparse teacher: one program per row, which also checks its entries."""

from __future__ import annotations

import triton
import triton.language as tl

from fastkd.backends.triton.arithmetic import fma
from fastkd.backends.triton.divergences.base import Scales
from fastkd.backends.triton.metrics import COLUMN, COUNT as METRICS_COLUMNS, clear_metrics, entropy_of
from fastkd.backends.triton.row import entry, row_of
from fastkd.backends.triton.shifts import ce_exp
from fastkd.backends.triton.sparse_classes import Classes, find_classes
from fastkd.backends.triton.sweep1_statistics import find_statistics
from fastkd.backends.triton.sweep3_gradient import Factors, Outputs, write_gradients
from fastkd.backends.triton.tiles import (
    NEG_INF,
    Rows,
    clear_columns,
    finite_shift,
    row_offset,
    row_pointer,
    row_total,
    stripe_columns,
    tile_columns,
    widen,
)
from fastkd.backends.triton.value import ce_inverse, cross_entropy, find_ce_softmax

# As in ``dense_rows_kernel``. The number of entries belongs to the data set, and no loop has it as a bound.
UNSPECIALISED = [
    *("labels", "loss_scale", "grad_scale", "upstream", "row_loss", "metrics"),
    *("indices", "logprobs", "grad_logprobs", "entries"),
    *("s_outer", "s_inner", "gs_outer", "gs_inner", "inner", "upstream_stride", "ignore_index"),
]


@triton.jit
def _columns_of(indices, logprobs, place, entries, vocab):
    """``(columns, log-probabilities, whether the entry exists, whether its column does)`` of these entries.
    Where there is no column, its number is negative and no other place's."""
    listed = place < entries
    log_p = tl.load(logprobs + place, mask=listed, other=NEG_INF).to(tl.float32)
    index = tl.load(indices + place, mask=listed, other=-1)
    present = listed & (log_p != NEG_INF)
    here = present & (index >= 0) & (index < vocab)
    return tl.where(here, index.to(tl.int32), -1 - place), log_p, present, here


@triton.jit
def _repeats(indices, logprobs, entries, vocab, CLASSES: tl.constexpr, CHUNK: tl.constexpr):
    """Whether two entries that exist name the same column. A few are compared with all at once."""
    columns = _columns_of(indices, logprobs, tl.arange(0, CLASSES)[None, :], entries, vocab)[0]
    same = tl.zeros([CHUNK, CLASSES], tl.int32)
    for first in range(0, CLASSES, CHUNK):
        place = first + tl.arange(0, CHUNK)[:, None]
        same += (_columns_of(indices, logprobs, place, entries, vocab)[0] == columns).to(tl.int32)
    return row_total(same) != CLASSES  # each is the same as itself


@triton.jit(do_not_specialize=UNSPECIALISED)
def sparse_rows_kernel(
    student, indices, logprobs, labels, loss_scale, grad_scale, upstream, row_loss,
    grad_student, grad_logprobs, metrics,
    s_outer, s_inner, s_stride, gs_outer, gs_inner, gs_stride,
    inner, upstream_stride, vocab, student_columns, entries, ignore_index,
    log2_scale_s, to_nats, class_log2_scale_s, class_log2_scale_t, class_to_nats_s, class_to_nats_t,
    class_temperatures, a, b, kd_weight, kd_metric, kd_s, ce_weight, smoothing, z_loss, most_mass,
    DIVERGENCE: tl.constexpr, STUDENT: tl.constexpr, TERMS: tl.constexpr, CLASS_TERMS: tl.constexpr,
    TAIL: tl.constexpr, HAS_REST: tl.constexpr,
    PHASED: tl.constexpr, WIDE_S: tl.constexpr, WIDE_GS: tl.constexpr,
    REPEAT: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
    CLASSES: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Row ``program_id(0)``. Arguments that ``dense_rows_kernel`` does not have:

    - ``indices, logprobs, grad_logprobs, most_mass``: those of ``SparseRows``; ``entries`` is its ``K``;
    - ``log2_scale_s, to_nats``: of the student's row; ``class_*``: the fields of ``Scales`` of the classes;
    - ``DIVERGENCE``: of the classes; ``STUDENT``: the ``Formulas`` of the student's row;
    - ``TERMS``: of the student's row; ``CLASS_TERMS``: those of a divergence alone;
    - ``TAIL``: that of ``SparseRows``; ``HAS_REST``: as ``find_classes``;
    - ``CLASSES``: a power of two above ``entries``; ``CHUNK`` of them are compared with all at once.
    """
    TILE: tl.constexpr = REPEAT * LANES * WIDTH
    tile = tile_columns(REPEAT, LANES, WIDTH)
    stripe = stripe_columns(LANES, WIDTH)
    row = tl.program_id(0).to(tl.int64)
    begin = 0
    if PHASED:
        begin = (row_offset(row, inner, s_outer, s_inner) % WIDTH).to(tl.int32)
    student = row_pointer(student, row, inner, s_outer, s_inner, s_stride, begin, WIDE_S, WIDTH)
    if grad_student is not None:
        grad_student = row_pointer(
            grad_student, row, inner, gs_outer, gs_inner, gs_stride, begin, WIDE_GS, WIDTH
        )
    if metrics is not None:
        metrics += row * METRICS_COLUMNS
    indices += row * entries
    logprobs += row * entries
    place = tl.arange(0, CLASSES)[:, None]

    scale_l = tl.load(loss_scale + row)
    scale_g = tl.load(grad_scale + row)
    if upstream is not None:
        scale_g = tl.where(scale_g == 0.0, 0.0, scale_g * tl.load(upstream + row * upstream_stride))
    active = (scale_l != 0.0) | (scale_g != 0.0)
    if labels is not None:
        label = tl.load(labels + row)
        active = active & (label != ignore_index)

    if active:
        column, log_p, present, here = _columns_of(indices, logprobs, place, entries, vocab)
        place_s = student + (column + begin).to(tl.int64) * s_stride
        logit = widen(tl.load(place_s, mask=here, other=NEG_INF))
        wrong = row_total((present & (column < 0)).to(tl.int32)) > 0
        wrong = wrong | _repeats(indices, logprobs, entries, vocab, CLASSES, CHUNK)
        if TAIL == "bucket":
            wrong = wrong | (row_total(tl.exp(log_p)) > most_mass)
        label_column = -1
        label_s = NEG_INF
        if labels is not None:
            label_here = (label >= 0) & (label < vocab)
            wrong = wrong | (label_here == 0)
            label_column = tl.where(label_here, label + begin, -1).to(tl.int32)
            if TERMS.nll:
                place_l = student + (label + begin) * s_stride
                label_s = tl.load(place_l, mask=label_here, other=NEG_INF).to(tl.float32)
        poison = tl.where(wrong, float("nan"), 0.0)
        scale_g += poison

        scales = Scales(log2_scale_s, log2_scale_s, to_nats, 1.0, a, b)
        rows = Rows(student, student, s_stride, s_stride, begin, begin + vocab, label_column, 0.0, 0.0)
        rows, statistics, cross_shift = find_statistics(
            rows, stripe, scales, STUDENT, TERMS, REPEAT, LANES, WIDTH
        )
        shared, statistics = row_of(statistics, cross_shift, scales, STUDENT)
        low_s = label_s - rows.origin_s
        ce_softmax = find_ce_softmax(statistics, low_s, False)
        lse = ce_softmax.lse + rows.origin_s
        ce = cross_entropy(statistics, ce_softmax, low_s, vocab, smoothing, TERMS.smoothing, False)

        # The logarithms are relative to the row maximum, where that of the normaliser is small.
        low = logit - rows.origin_s
        top = finite_shift(statistics.max_s) - rows.origin_s
        log_z = tl.log(statistics.z_s * tl.exp2((statistics.logit_shift_s - top) * log2_scale_s))
        log_q = tl.where(present, (low - top) * to_nats - log_z, NEG_INF)
        class_scales = Scales(
            class_log2_scale_s, class_log2_scale_t, class_to_nats_s, class_temperatures, a, b
        )
        found, teacher_entropy = find_classes(
            log_q,
            log_p,
            place,
            entries,
            class_scales,
            class_to_nats_t,
            DIVERGENCE,
            CLASS_TERMS,
            TAIL,
            HAS_REST,
        )
        # A row without entries adds nothing to the loss.
        empty = row_total(present.to(tl.int32)) == 0
        found = Classes(
            tl.where(empty, 0.0, found.value), tl.where(empty, 0.0, found.coefficient),
            found.by_student, found.by_logprobs,
        )  # fmt: skip

        loss = kd_weight * found.value + poison
        if TERMS.cross_entropy:
            loss += ce_weight * ce
        if TERMS.z_loss:
            loss += z_loss * lse * lse
        tl.store(row_loss + row, tl.where(scale_l == 0.0, poison, scale_l * loss))
        if TERMS.metrics:
            best = tl.max(tl.max(log_p, axis=1), axis=0)
            first = tl.min(tl.min(tl.where(log_p == best, place, CLASSES), axis=1), axis=0)
            of_teacher = row_total(tl.where(place == first, logit, 0.0))
            agrees = (of_teacher == statistics.max_s) & (empty == 0)
            tl.store(metrics + COLUMN.kd, kd_metric * found.value + poison)
            if TERMS.nll:
                tl.store(metrics + COLUMN.ce, ce + poison)
            else:
                tl.store(metrics + COLUMN.ce, float("nan"))
            entropy_s = entropy_of(statistics.z_s, statistics.moment_s)
            tl.store(metrics + COLUMN.student_entropy, entropy_s + poison)
            tl.store(metrics + COLUMN.teacher_entropy, teacher_entropy + poison)
            tl.store(metrics + COLUMN.agreement, tl.where(agrees, 1.0, 0.0) + poison)
        if grad_logprobs is not None:
            by_logprobs = tl.where(present, scale_g * kd_weight * found.by_logprobs, 0.0)
            tl.store(grad_logprobs + row * entries + place, by_logprobs, mask=place < entries)

        if grad_student is not None:
            clear_columns(grad_student, rows.end, begin + student_columns, gs_stride, tile, TILE)
            by_student = scale_g * kd_s
            by_softmax = 0.0
            if TERMS.cross_entropy:
                by_softmax = scale_g * ce_weight
            if TERMS.z_loss:
                by_softmax += scale_g * (2.0 * z_loss * lse)
            smoothing_weight = scale_g * ce_weight * smoothing / vocab
            label_weight = scale_g * ce_weight * (1.0 - smoothing)
            by_exp = by_softmax * ce_inverse(statistics, ce_softmax, shared, TERMS.power, False)
            factors = Factors(
                by_student * found.coefficient, 0.0, by_exp, smoothing_weight, label_weight, 0.0, 0.0
            )
            outputs = Outputs(grad_student, None, gs_stride, gs_stride)
            write_gradients(
                rows, outputs, tile, shared, (0.0, 0.0, 0.0), factors, scales, STUDENT, TERMS, TILE
            )
            # The entries' gradients once more, now complete, so that each is rounded once.
            g = by_student * found.by_student
            if TERMS.cross_entropy or TERMS.z_loss:
                e = entry(low, low, shared, scales, False)
                g = fma(ce_exp(e.es, low, shared.shifts, TERMS.power), by_exp, g)
            if TERMS.smoothing:
                g -= smoothing_weight
            if TERMS.cross_entropy:
                g = tl.where(column + begin == label_column, g - label_weight, g)
            tl.debug_barrier()  # before entries replace what other threads have written
            place_g = grad_student + (column + begin).to(tl.int64) * gs_stride
            tl.store(place_g, g.to(grad_student.dtype.element_ty), mask=here)
    else:
        tl.store(row_loss + row, 0.0)
        if TERMS.metrics:
            clear_metrics(metrics)
        if grad_logprobs is not None:
            tl.store(
                grad_logprobs + row * entries + place,
                tl.zeros_like(place).to(tl.float32),
                mask=place < entries,
            )
        if grad_student is not None:
            clear_columns(grad_student, begin, begin + student_columns, gs_stride, tile, TILE)
