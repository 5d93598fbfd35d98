"""The kernel of the fused loss: one program per row."""

from __future__ import annotations

import triton
import triton.language as tl

from fastkd.backends.triton import metrics as row_metrics, record as row_record
from fastkd.backends.triton.divergences.base import Scales
from fastkd.backends.triton.metrics import clear_metrics, write_metrics
from fastkd.backends.triton.record import read_record, read_sums, write_record, write_sums
from fastkd.backends.triton.row import row_of
from fastkd.backends.triton.sweep1_statistics import find_statistics
from fastkd.backends.triton.sweep2_sums import find_distant_sums, find_sums
from fastkd.backends.triton.sweep3_gradient import (
    Factors,
    Outputs,
    write_gradients,
    write_gradients_near_or_distant,
)
from fastkd.backends.triton.tiles import (
    NEG_INF,
    Rows,
    clear_columns,
    lower,
    row_offset,
    row_pointer,
    stripe_columns,
    tile_columns,
)
from fastkd.backends.triton.value import ce_inverse, cross_entropy, find_ce_softmax, label_splits

RECORD_COLUMNS = row_record.COUNT
METRICS_COLUMNS = row_metrics.COUNT
# Values that change from call to call must not select a compiled variant. The number of rows is therefore not
# an argument, and these are not specialised: the strides between rows and the pointers to per-row values.
# The pointers to logits and gradients are, on alignment to 16 bytes, and so is the vocabulary, which belongs
# to the model, on divisibility by 16.
UNSPECIALISED = [
    *("labels", "loss_scale", "grad_scale", "upstream", "row_loss", "metrics", "record", "coefficient"),
    *(f"{tensor}_{dimension}" for tensor in ("s", "t", "gs", "gt") for dimension in ("outer", "inner")),
    *("inner", "upstream_stride", "ignore_index"),
]


@triton.jit(do_not_specialize=UNSPECIALISED)
def dense_rows_kernel(
    student, teacher, labels, loss_scale, grad_scale, upstream, row_loss, grad_student, grad_teacher,
    metrics, record, coefficient,
    s_outer, s_inner, s_stride, t_outer, t_inner, t_stride,
    gs_outer, gs_inner, gs_stride, gt_outer, gt_inner, gt_stride,
    inner, upstream_stride, vocab, student_columns, teacher_columns, ignore_index,
    log2_scale_s, log2_scale_t, to_nats, temperatures, a, b,
    kd_weight, kd_metric, kd_s, kd_t, ce_weight, smoothing, z_loss,
    DIVERGENCE: tl.constexpr, TERMS: tl.constexpr,
    PHASED: tl.constexpr, WIDE_S: tl.constexpr, WIDE_T: tl.constexpr,
    WIDE_GS: tl.constexpr, WIDE_GT: tl.constexpr,
    REPEAT: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One phase (``KernelBackend.launch``) of row ``program_id(0)``. Arguments that ``Call`` does not have:

    - ``*_outer, *_inner, *_stride``: strides, in elements, of the three dimensions of a tensor;
    - ``log2_scale_s, ..., b``: the fields of ``Scales``; ``kd_s, kd_t``: kd_weight over a temperature;
    - ``DIVERGENCE``: a ``Formulas``; ``TERMS``: a ``Terms``; pointers that the call does not need are None;
    - ``PHASED``: whether rows may begin between two boundaries of ``WIDTH`` elements;
    - ``WIDE_*``: whether a tensor's columns are adjacent and each of its rows begins as far from such a
      boundary as the student's.
    """
    TEACHER: tl.constexpr = DIVERGENCE.reads_teacher
    SPLITS: tl.constexpr = DIVERGENCE.splits_label
    PHASE: tl.constexpr = TERMS.phase
    FINISHES: tl.constexpr = TERMS.finishes
    TILE: tl.constexpr = REPEAT * LANES * WIDTH
    tile = tile_columns(REPEAT, LANES, WIDTH)
    stripe = stripe_columns(LANES, WIDTH)
    row = tl.program_id(0).to(tl.int64)
    begin = 0
    if PHASED:
        begin = (row_offset(row, inner, s_outer, s_inner) % WIDTH).to(tl.int32)
    student = row_pointer(student, row, inner, s_outer, s_inner, s_stride, begin, WIDE_S, WIDTH)
    if TEACHER:
        teacher = row_pointer(teacher, row, inner, t_outer, t_inner, t_stride, begin, WIDE_T, WIDTH)
    else:
        teacher = student
    if record is not None:
        record += row * RECORD_COLUMNS
    if metrics is not None:
        metrics += row * METRICS_COLUMNS

    scale_l = tl.load(loss_scale + row)
    scale_g = tl.load(grad_scale + row)
    if upstream is not None:
        scale_g = tl.where(scale_g == 0.0, 0.0, scale_g * tl.load(upstream + row * upstream_stride))
    active = (scale_l != 0.0) | (scale_g != 0.0)
    if labels is not None:
        label = tl.load(labels + row)
        active = active & (label != ignore_index)

    if active:
        label_column = -1
        label_s = NEG_INF
        label_t = NEG_INF
        if labels is not None:
            here = (label >= 0) & (label < vocab)
            if not TERMS.sharded:
                scale_l = tl.where(here, scale_l, float("nan"))
                scale_g = tl.where(here, scale_g, float("nan"))
            place = label + begin
            label_column = tl.where(here, place, -1).to(tl.int32)
            # Loaded before a gradient in the same memory overwrites them.
            if (TERMS.nll or SPLITS) and PHASE != "finish":
                label_s = tl.load(student + place * s_stride, mask=here, other=NEG_INF).to(tl.float32)
                if SPLITS:
                    label_t = tl.load(teacher + place * t_stride, mask=here, other=NEG_INF).to(tl.float32)
        scales = Scales(log2_scale_s, log2_scale_t, to_nats, temperatures, a, b)
        rows = Rows(student, teacher, s_stride, t_stride, begin, begin + vocab, label_column, 0.0, 0.0)

        columns = vocab
        if PHASE == "all" or PHASE == "statistics":
            rows, statistics, cross_shift = find_statistics(
                rows, stripe, scales, DIVERGENCE, TERMS, REPEAT, LANES, WIDTH
            )
        else:
            rows, statistics, cross_shift, label_s, label_t, columns = read_record(
                record, rows, scales, DIVERGENCE
            )

        if PHASE == "statistics":
            write_record(record, rows, statistics, cross_shift, label_s, label_t, scales, DIVERGENCE)
        else:
            # From here on exponentials are relative to the shifts that suit q - p best.
            shared, statistics = row_of(statistics, cross_shift, scales, DIVERGENCE)
            sum_0 = 0.0
            sum_1 = 0.0
            if PHASE == "distant" or PHASE == "finish":
                sum_0, sum_1 = read_sums(record)
            elif DIVERGENCE.has_sums:
                sum_0, sum_1 = find_sums(rows, stripe, shared, scales, DIVERGENCE, REPEAT, LANES, WIDTH)
            if DIVERGENCE.has_distant and (PHASE == "all" or PHASE == "distant"):  # noqa: SIM102
                if DIVERGENCE.distant.is_distant(sum_0):
                    sum_0, sum_1 = find_distant_sums(rows, stripe, shared, scales, DIVERGENCE, LANES, WIDTH)
            if PHASE == "sums" or PHASE == "distant":
                write_sums(record, sum_0, sum_1)

        if FINISHES:
            low_s, low_t = lower(rows, label_s, label_t)
            split = 0.0
            if SPLITS:
                split = label_splits(statistics, low_s, low_t, scales)
            divergence, loss = float("nan"), 0.0
            constants = (0.0, 0.0, 0.0)
            if TEACHER:
                divergence, constants = DIVERGENCE.evaluate(statistics, split, sum_0, sum_1, shared, scales)
                loss = kd_weight * divergence
            ce_softmax = find_ce_softmax(statistics, low_s, SPLITS)
            lse = ce_softmax.lse + rows.origin_s
            ce = cross_entropy(statistics, ce_softmax, low_s, columns, smoothing, TERMS.smoothing, SPLITS)
            if TERMS.cross_entropy:
                loss += ce_weight * ce
            if TERMS.z_loss:
                loss += z_loss * lse * lse
            tl.store(row_loss + row, tl.where(scale_l == 0.0, 0.0, scale_l * loss))
            if TERMS.metrics:
                write_metrics(
                    metrics, statistics, split, label_s, label_t, label_column,
                    kd_metric * divergence, ce, DIVERGENCE, TERMS,
                )  # fmt: skip

            if grad_student is not None:
                grad_student = row_pointer(
                    grad_student, row, inner, gs_outer, gs_inner, gs_stride, begin, WIDE_GS, WIDTH
                )
                clear_columns(grad_student, rows.end, begin + student_columns, gs_stride, tile, TILE)
            if grad_teacher is not None:
                grad_teacher = row_pointer(
                    grad_teacher, row, inner, gt_outer, gt_inner, gt_stride, begin, WIDE_GT, WIDTH
                )
                clear_columns(grad_teacher, rows.end, begin + teacher_columns, gt_stride, tile, TILE)
            if (grad_student is not None) or (grad_teacher is not None):
                by_student = scale_g * kd_s
                if coefficient is not None:
                    by_student *= tl.load(coefficient + row)
                by_teacher = scale_g * kd_t
                by_softmax = 0.0
                if TERMS.cross_entropy:
                    by_softmax = scale_g * ce_weight
                if TERMS.z_loss:
                    by_softmax += scale_g * (2.0 * z_loss * lse)
                smoothing_weight = scale_g * ce_weight * smoothing / columns
                label_weight = scale_g * ce_weight * (1.0 - smoothing)
                at_label_s, at_label_t = 0.0, 0.0
                if SPLITS:
                    at_label_s = by_student * constants[0] + by_softmax * ce_softmax.label
                    at_label_t = by_teacher * constants[1]
                    if TERMS.cross_entropy:
                        at_label_s -= smoothing_weight + label_weight
                by_exp = by_softmax * ce_inverse(statistics, ce_softmax, shared, TERMS.power, SPLITS)
                factors = Factors(
                    by_student, by_teacher, by_exp, smoothing_weight, label_weight, at_label_s, at_label_t
                )
                outputs = Outputs(grad_student, grad_teacher, gs_stride, gt_stride)
                if DIVERGENCE.has_distant:
                    write_gradients_near_or_distant(
                        rows, outputs, tile, shared, constants, factors, scales, sum_0 < 0.0,
                        DIVERGENCE, TERMS, TILE,
                    )  # fmt: skip
                else:
                    write_gradients(
                        rows, outputs, tile, shared, constants, factors, scales, DIVERGENCE, TERMS, TILE
                    )
    elif FINISHES:
        tl.store(row_loss + row, 0.0)
        if TERMS.metrics:
            clear_metrics(metrics)
        if grad_student is not None:
            grad_student = row_pointer(
                grad_student, row, inner, gs_outer, gs_inner, gs_stride, begin, WIDE_GS, WIDTH
            )
            clear_columns(grad_student, begin, begin + student_columns, gs_stride, tile, TILE)
        if grad_teacher is not None:
            grad_teacher = row_pointer(
                grad_teacher, row, inner, gt_outer, gt_inner, gt_stride, begin, WIDE_GT, WIDTH
            )
            clear_columns(grad_teacher, begin, begin + teacher_columns, gt_stride, tile, TILE)
