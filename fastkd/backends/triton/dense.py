"""The kernel of the fused loss: one program per row."""

from __future__ import annotations

import triton
import triton.language as tl

from fastkd.backends.triton.cross_entropy import cross_entropy, unit_inverse, unit_softmax
from fastkd.backends.triton.divergences import (
    Scales,
    has_distant,
    has_sums,
    is_distant,
    reads_teacher,
    splits_label,
    value,
)
from fastkd.backends.triton.gradient import (
    Factors,
    Outputs,
    gradients_near_or_distant,
    row_distant_sums,
    row_gradients,
    row_of,
    row_sums,
)
from fastkd.backends.triton.metrics import write_metrics
from fastkd.backends.triton.record import COLUMNS, SUM_0, read_record, write_record
from fastkd.backends.triton.split import label_splits
from fastkd.backends.triton.statistics import row_statistics
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

# Values that change from call to call must not select a compiled variant. The number of rows is therefore not
# an argument, and these are not specialised: the strides between rows and the pointers to per-row values.
# The pointers to logits and gradients are, on alignment to 16 bytes, and so is the vocabulary, which belongs
# to the model, on divisibility by 16.
UNSPECIALISED = [
    *("labels", "loss_scale", "grad_scale", "row_loss", "metrics", "record", "coefficient"),
    *(f"{tensor}_{dimension}" for tensor in ("s", "t", "gs", "gt") for dimension in ("outer", "inner")),
    *("inner", "ignore_index"),
]


@triton.jit(do_not_specialize=UNSPECIALISED)
def dense_rows_kernel(
    student, teacher, labels, loss_scale, grad_scale, row_loss, grad_student, grad_teacher,
    metrics, record, coefficient,
    s_outer, s_inner, s_stride, t_outer, t_inner, t_stride,
    gs_outer, gs_inner, gs_stride, gt_outer, gt_inner, gt_stride,
    inner, vocab, student_columns, teacher_columns, ignore_index,
    c_s, c_t, to_nats, temperatures, a, b,
    kd_weight, kd_metric, kd_s, kd_t, ce_weight, smoothing, z_loss,
    DIVERGENCE: tl.constexpr, PHASE: tl.constexpr, SHARDED: tl.constexpr, METRICS: tl.constexpr,
    CE: tl.constexpr, SMOOTHING: tl.constexpr, Z_LOSS: tl.constexpr, POWER: tl.constexpr,
    PHASED: tl.constexpr, WIDE_S: tl.constexpr, WIDE_T: tl.constexpr,
    WIDE_GS: tl.constexpr, WIDE_GT: tl.constexpr,
    REPEAT: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One phase (``KernelBackend.launch``) of row ``program_id(0)``. Arguments that ``Call`` does not have:

    - ``*_outer, *_inner, *_stride``: strides, in elements, of the three dimensions of a tensor;
    - ``c_s, ..., b``: the fields of ``Scales``; ``kd_s, kd_t``: kd_weight over the side's temperature;
    - ``DIVERGENCE``: None without one; ``CE``: whether cross-entropy is part of the loss; ``POWER``: ``T`` if
      it is 1 or 2 (then exp(s) is exp(s / T)**T), else 0; pointers that the call does not need are None;
    - ``PHASED``: whether rows may begin between two boundaries of ``WIDTH`` elements;
    - ``WIDE_*``: whether a tensor's columns are adjacent and each of its rows begins as far from such a
      boundary as the student's.
    """
    TEACHER: tl.constexpr = reads_teacher(DIVERGENCE)
    SPLITS: tl.constexpr = splits_label(DIVERGENCE)
    NEEDS_LABEL: tl.constexpr = (labels is not None) and (CE or SPLITS or METRICS)
    NLL: tl.constexpr = CE or (METRICS and labels is not None)
    UNIT: tl.constexpr = NLL or Z_LOSS
    TILE: tl.constexpr = REPEAT * LANES * WIDTH
    FINISH: tl.constexpr = PHASE == "all" or PHASE == "finish"
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
        record += row * COLUMNS
    if metrics is not None:
        metrics += row * 5

    scale_l = tl.load(loss_scale + row)
    scale_g = tl.load(grad_scale + row)
    active = (scale_l != 0.0) | (scale_g != 0.0)
    if labels is not None:
        label = tl.load(labels + row)
        active = active & (label != ignore_index)

    if active:
        column = -1  # of the label
        label_s = NEG_INF
        label_t = NEG_INF
        if labels is not None:
            here = (label >= 0) & (label < vocab)
            if not SHARDED:
                scale_l = tl.where(here, scale_l, float("nan"))
                scale_g = tl.where(here, scale_g, float("nan"))
            place = label + begin
            column = tl.where(here, place, -1).to(tl.int32)
            # Loaded before a gradient in the same memory overwrites them.
            if NEEDS_LABEL and PHASE != "finish":
                label_s = tl.load(student + place * s_stride, mask=here, other=NEG_INF).to(tl.float32)
                if SPLITS:
                    label_t = tl.load(teacher + place * t_stride, mask=here, other=NEG_INF).to(tl.float32)
        scales = Scales(c_s, c_t, to_nats, temperatures, a, b)
        rows = Rows(student, teacher, s_stride, t_stride, begin, begin + vocab, column, 0.0, 0.0)

        columns = vocab
        if PHASE == "all" or PHASE == "statistics":
            rows, found, cross_shift = row_statistics(
                rows, stripe, scales, DIVERGENCE, UNIT, SMOOTHING, METRICS, METRICS or PHASE == "statistics",
                POWER, REPEAT, LANES, WIDTH,
            )  # fmt: skip
        else:
            rows, found, cross_shift, label_s, label_t, columns = read_record(
                record, rows, scales, DIVERGENCE
            )

        if PHASE == "statistics":
            write_record(record, rows, found, cross_shift, label_s, label_t, scales, DIVERGENCE)
        else:
            # From here on exponentials are relative to the shifts that suit q - p best.
            shared, found = row_of(found, cross_shift, scales, DIVERGENCE)
            sum_0 = 0.0
            sum_1 = 0.0
            if PHASE == "distant" or PHASE == "finish":
                sum_0 = tl.load(record + SUM_0).to(tl.float32)
                sum_1 = tl.load(record + SUM_0 + 1).to(tl.float32)
            elif has_sums(DIVERGENCE):
                sum_0, sum_1 = row_sums(rows, stripe, shared, scales, DIVERGENCE, REPEAT, LANES, WIDTH)
            if has_distant(DIVERGENCE) and (PHASE == "all" or PHASE == "distant"):  # noqa: SIM102
                if is_distant(sum_0):
                    sum_0, sum_1 = row_distant_sums(rows, stripe, shared, scales, LANES, WIDTH)
            if PHASE == "sums" or PHASE == "distant":
                tl.store(record + SUM_0, sum_0)
                tl.store(record + SUM_0 + 1, sum_1)

        if FINISH:
            low_s, low_t = lower(rows, label_s, label_t)
            split = 0.0
            if SPLITS:
                split = label_splits(found, low_s, low_t, scales)
            divergence, loss = float("nan"), 0.0
            constants = (0.0, 0.0, 0.0)
            if TEACHER:
                divergence, constants = value(found, split, sum_0, sum_1, shared, scales, DIVERGENCE)
                loss = kd_weight * divergence
            unit = unit_softmax(found, low_s, SPLITS)
            lse = unit.lse + rows.origin_s
            ce = cross_entropy(found, unit, low_s, columns, smoothing, SMOOTHING, SPLITS)
            if CE:
                loss += ce_weight * ce
            if Z_LOSS:
                loss += z_loss * lse * lse
            tl.store(row_loss + row, tl.where(scale_l == 0.0, 0.0, scale_l * loss))
            if METRICS:
                write_metrics(
                    metrics, found, split, label_s, label_t, column, kd_metric * divergence, ce,
                    DIVERGENCE, NLL, SHARDED,
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
                if DIVERGENCE == "off_support":
                    by_student *= tl.load(coefficient + row)
                by_teacher = scale_g * kd_t
                by_softmax = 0.0
                if CE:
                    by_softmax = scale_g * ce_weight
                if Z_LOSS:
                    by_softmax += scale_g * (2.0 * z_loss * lse)
                uniform = scale_g * ce_weight * smoothing / columns
                hot = scale_g * ce_weight * (1.0 - smoothing)
                at_label_s, at_label_t = 0.0, 0.0
                if SPLITS:
                    at_label_s = by_student * constants[0] + by_softmax * unit.label
                    at_label_t = by_teacher * constants[1]
                    if CE:
                        at_label_s -= uniform + hot
                by_unit = by_softmax * unit_inverse(found, unit, shared, POWER, SPLITS)
                factors = Factors(by_student, by_teacher, by_unit, uniform, hot, at_label_s, at_label_t)
                outputs = Outputs(grad_student, grad_teacher, gs_stride, gt_stride)
                if has_distant(DIVERGENCE):
                    gradients_near_or_distant(
                        rows, outputs, tile, shared, constants, factors, scales, sum_0 < 0.0,
                        DIVERGENCE, CE or Z_LOSS, CE, SMOOTHING, POWER, TILE,
                    )  # fmt: skip
                else:
                    row_gradients(
                        rows, outputs, tile, shared, constants, factors, scales,
                        DIVERGENCE, CE or Z_LOSS, CE, SMOOTHING, POWER, TILE,
                    )  # fmt: skip
    elif FINISH:
        tl.store(row_loss + row, 0.0)
        if METRICS:
            for k in tl.static_range(5):
                tl.store(metrics + k, 0.0)
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
