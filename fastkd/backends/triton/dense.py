"""The kernel of the fused loss: one program per row."""

from __future__ import annotations

import triton
import triton.language as tl

from fastkd.backends.triton.cross_entropy import cross_entropy, unit_inverse, unit_softmax
from fastkd.backends.triton.divergences import Scales, has_sums, reads_teacher, splits_label, value
from fastkd.backends.triton.gradient import Factors, Outputs, row_gradients, row_of, row_sums
from fastkd.backends.triton.metrics import write_metrics
from fastkd.backends.triton.record import COLUMNS, SUM_0, read_record, write_record
from fastkd.backends.triton.split import label_splits
from fastkd.backends.triton.statistics import row_statistics
from fastkd.backends.triton.tiles import NEG_INF, Rows, clear_columns, finite_shift, row_pointer, tile_columns


# The sizes of a batch select no compiled variant: the number of rows is no argument, `inner` is not
# specialised. Vocabulary and strides, which belong to the model, are specialised on divisibility by 16,
# without which no access is wider than one element.
@triton.jit(do_not_specialize=["inner", "ignore_index"])
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
    REPEAT: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One phase (``KernelBackend.launch``) of row ``program_id(0)``. Arguments that are not of ``Call``:

    - ``*_outer, *_inner, *_stride``: strides, in elements, of the three dimensions of a tensor;
    - ``c_s, ..., b``: ``Scales``; ``kd_s, kd_t``: kd_weight over the temperature;
    - ``DIVERGENCE``: None where there is none; ``CE``: whether cross-entropy is part of the loss; ``POWER``:
      ``T`` where exp(s) is that power of exp(s / T) (1 or 2), else 0; pointers that are not needed: None.
    """
    TEACHER: tl.constexpr = reads_teacher(DIVERGENCE)
    SPLITS: tl.constexpr = splits_label(DIVERGENCE)
    NEEDS_LABEL: tl.constexpr = (labels is not None) and (CE or SPLITS or METRICS)
    NLL: tl.constexpr = CE or (METRICS and labels is not None)
    UNIT: tl.constexpr = NLL or Z_LOSS
    TILE: tl.constexpr = REPEAT * LANES * WIDTH
    FINISH: tl.constexpr = PHASE == "all" or PHASE == "finish"
    tile = tile_columns(REPEAT, LANES, WIDTH)
    row = tl.program_id(0).to(tl.int64)
    student = row_pointer(student, row, inner, s_outer, s_inner)
    teacher = row_pointer(teacher, row, inner, t_outer, t_inner) if TEACHER else student
    if grad_student is not None:
        grad_student = row_pointer(grad_student, row, inner, gs_outer, gs_inner)
    if grad_teacher is not None:
        grad_teacher = row_pointer(grad_teacher, row, inner, gt_outer, gt_inner)
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
            column = tl.where(here, label, -1).to(tl.int32)
            # Before a gradient in the same memory overwrites them.
            if NEEDS_LABEL and PHASE != "finish":
                label_s = tl.load(student + label * s_stride, mask=here, other=NEG_INF).to(tl.float32)
                if SPLITS:
                    label_t = tl.load(teacher + label * t_stride, mask=here, other=NEG_INF).to(tl.float32)
        scales = Scales(c_s, c_t, to_nats, temperatures, a, b)
        rows = Rows(student, teacher, s_stride, t_stride, vocab, column)

        columns = vocab
        if PHASE == "all" or PHASE == "statistics":
            found, cross_shift = row_statistics(
                rows, tile, scales, DIVERGENCE, UNIT, SMOOTHING, METRICS, POWER, LANES, TILE
            )
        else:
            found, cross_shift, label_s, label_t, columns = read_record(record, scales, DIVERGENCE)

        if PHASE == "statistics":
            write_record(record, found, cross_shift, label_s, label_t, vocab, scales, DIVERGENCE)
        else:
            # From here on exponentials are relative to the shifts that suit q - p best.
            shared, found = row_of(found, cross_shift, scales, DIVERGENCE)
            sum_0 = 0.0
            sum_1 = 0.0
            if PHASE == "finish":
                sum_0 = tl.load(record + SUM_0).to(tl.float32)
                sum_1 = tl.load(record + SUM_0 + 1).to(tl.float32)
            elif has_sums(DIVERGENCE):
                sum_0, sum_1 = row_sums(rows, tile, shared, scales, DIVERGENCE, LANES, TILE)
            if PHASE == "sums":
                tl.store(record + SUM_0, sum_0)
                tl.store(record + SUM_0 + 1, sum_1)

        if FINISH:
            split = 0.0
            if SPLITS:
                split = label_splits(found, label_s, label_t, scales)
            divergence, loss = float("nan"), 0.0
            constants = (0.0, 0.0, 0.0)
            if TEACHER:
                divergence, constants = value(found, split, sum_0, sum_1, shared, scales, DIVERGENCE)
                loss = kd_weight * divergence
            unit = unit_softmax(found, label_s, SPLITS)
            ce = cross_entropy(found, unit, label_s, columns, smoothing, SMOOTHING, SPLITS)
            if CE:
                loss += ce_weight * ce
            if Z_LOSS:
                loss += z_loss * unit.lse * unit.lse
            tl.store(row_loss + row, tl.where(scale_l == 0.0, 0.0, scale_l * loss))
            if METRICS:
                write_metrics(
                    metrics, found, split, label_s, label_t, column, kd_metric * divergence, ce,
                    DIVERGENCE, NLL, SHARDED,
                )  # fmt: skip

            if grad_student is not None:
                clear_columns(grad_student, vocab, student_columns, gs_stride, tile, TILE)
            if grad_teacher is not None:
                clear_columns(grad_teacher, vocab, teacher_columns, gt_stride, tile, TILE)
            if (grad_student is not None) or (grad_teacher is not None):
                by_student = scale_g * kd_s
                if DIVERGENCE == "off_support":
                    by_student *= tl.load(coefficient + row)
                by_teacher = scale_g * kd_t
                by_softmax = 0.0
                if CE:
                    by_softmax = scale_g * ce_weight
                if Z_LOSS:
                    by_softmax += scale_g * (2.0 * z_loss * unit.lse)
                uniform = scale_g * ce_weight * smoothing / columns
                hot = scale_g * ce_weight * (1.0 - smoothing)
                at_label_s, at_label_t = 0.0, 0.0
                if SPLITS:
                    at_label_s = by_student * constants[0] + by_softmax * unit.label
                    at_label_t = by_teacher * constants[1]
                    if CE:
                        at_label_s -= uniform + hot
                by_unit = by_softmax * unit_inverse(found, unit, shared, scales, POWER, SPLITS)
                factors = Factors(by_student, by_teacher, by_unit, uniform, hot, at_label_s, at_label_t)
                outputs = Outputs(grad_student, grad_teacher, gs_stride, gt_stride)
                row_gradients(
                    rows, outputs, tile, shared, constants, factors, finite_shift(found.max_s), scales,
                    DIVERGENCE, CE or Z_LOSS, CE, POWER, TILE,
                )  # fmt: skip
    elif FINISH:
        tl.store(row_loss + row, 0.0)
        if METRICS:
            for k in tl.static_range(5):
                tl.store(metrics + k, 0.0)
        if grad_student is not None:
            clear_columns(grad_student, 0, student_columns, gs_stride, tile, TILE)
        if grad_teacher is not None:
            clear_columns(grad_teacher, 0, teacher_columns, gt_stride, tile, TILE)
