"""The kernel of the fused loss: one program per row."""

from __future__ import annotations

import triton
import triton.language as tl

from fastkd.backends.triton.divergences import value
from fastkd.backends.triton.gradient import row_gradients
from fastkd.backends.triton.statistics import row_statistics, row_sums, shared_shifts, unit_exp
from fastkd.backends.triton.tiles import clear_columns, row_pointer, tile_columns


# The sizes of a batch select no compiled variant: the number of rows is no argument, `inner` is not
# specialised. Vocabulary and strides, which belong to the model, are specialised on divisibility by 16,
# without which no access is wider than one element.
@triton.jit(do_not_specialize=["inner", "ignore_index"])
def dense_rows_kernel(
    student, teacher, labels, loss_scale, grad_scale, row_loss, grad_student, grad_teacher,
    s_outer, s_inner, s_stride, t_outer, t_inner, t_stride,
    gs_outer, gs_inner, gs_stride, gt_outer, gt_inner, gt_stride,
    inner, vocab, student_columns, teacher_columns, ignore_index,
    c_s, c_t, kd_weight, kd_s, kd_t, beta, ce_weight, smoothing, z_loss,
    DIVERGENCE: tl.constexpr, CE: tl.constexpr, SMOOTHING: tl.constexpr, Z_LOSS: tl.constexpr,
    POWER: tl.constexpr, REPEAT: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Loss and gradients of row ``program_id(0)``; the arguments are those of ``Backend.dense_rows`` and

    - ``*_outer, *_inner, *_stride``: strides, in elements, of the three dimensions of a tensor;
    - ``c_s, c_t``: log2(e) over the temperature; ``kd_s, kd_t``: kd_weight over the temperature;
    - ``DIVERGENCE``: None where the teacher is not read; ``POWER``: ``T`` where exp(s) is that power of
      exp(s / T) (1 or 2), else 0; ``labels, grad_student, grad_teacher``: None where absent.
    """
    UNIT: tl.constexpr = CE or Z_LOSS
    TILE: tl.constexpr = REPEAT * LANES * WIDTH
    tile = tile_columns(REPEAT, LANES, WIDTH)
    row = tl.program_id(0).to(tl.int64)
    student = row_pointer(student, row, inner, s_outer, s_inner)
    if DIVERGENCE is not None:
        teacher = row_pointer(teacher, row, inner, t_outer, t_inner)
    if grad_student is not None:
        grad_student = row_pointer(grad_student, row, inner, gs_outer, gs_inner)
    if grad_teacher is not None:
        grad_teacher = row_pointer(grad_teacher, row, inner, gt_outer, gt_inner)

    scale_l = tl.load(loss_scale + row)
    scale_g = tl.load(grad_scale + row)
    active = (scale_l != 0.0) | (scale_g != 0.0)
    if labels is not None:
        label = tl.load(labels + row)
        active = active & (label != ignore_index)

    if active:
        label_logit = 0.0
        column = -1  # of the label
        if labels is not None:
            in_range = (label >= 0) & (label < vocab)
            label = tl.where(in_range, label, 0)
            scale_l = tl.where(in_range, scale_l, float("nan"))
            scale_g = tl.where(in_range, scale_g, float("nan"))
            column = label.to(tl.int32)
            if CE:  # before a gradient in the same memory overwrites it
                label_logit = tl.load(student + label * s_stride).to(tl.float32)

        max_s, total_s, total_1, sum_s, max_t, total_t, sum_a = row_statistics(
            student, teacher, tile, vocab, s_stride, t_stride, c_s, c_t,
            DIVERGENCE, UNIT, SMOOTHING, POWER, LANES, TILE,
        )  # fmt: skip
        log_total_1 = tl.log(total_1)
        lse = max_s + log_total_1

        # From here on exponentials are relative to the shifts that suit q - p best.
        shift_s = max_s
        shift_t = max_t
        total_1_shifted = total_1
        if DIVERGENCE is not None:
            shift_s, shift_t = shared_shifts(max_s, max_t, c_s, c_t)
            rescale_s = tl.exp2((max_s - shift_s) * c_s)
            total_s *= rescale_s
            total_t *= tl.exp2((max_t - shift_t) * c_t)
            if POWER != 0:
                total_1_shifted *= unit_exp(rescale_s, 0.0, POWER)
        inverse_s = 1.0 / total_s
        inverse_t = 1.0 / total_t
        log_const = tl.log(total_s / total_t)

        sum_b = 0.0
        if DIVERGENCE == "jsd":
            sum_a, sum_b = row_sums(
                student, teacher, tile, vocab, s_stride, t_stride, c_s, c_t,
                shift_s, shift_t, inverse_s, inverse_t, log_const, beta, DIVERGENCE, LANES, TILE,
            )  # fmt: skip

        loss = 0.0
        if DIVERGENCE is not None:
            loss = kd_weight * value(sum_a, sum_b, beta, DIVERGENCE)
        if CE:
            ce = log_total_1 - (label_logit - max_s)
            if SMOOTHING:
                ce = (1.0 - smoothing) * ce + smoothing * (lse - sum_s / vocab)
            loss += ce_weight * ce
        if Z_LOSS:
            loss += z_loss * lse * lse
        tl.store(row_loss + row, scale_l * loss)

        if (grad_student is not None) or (grad_teacher is not None):
            unit_factor = scale_g * (ce_weight + 2.0 * z_loss * lse) / total_1_shifted
            uniform = scale_g * ce_weight * smoothing / vocab
            hot = scale_g * ce_weight * (1.0 - smoothing)
            row_gradients(
                student, teacher, grad_student, grad_teacher, tile, vocab,
                s_stride, t_stride, gs_stride, gt_stride,
                c_s, c_t, max_s, shift_s, shift_t, inverse_s, inverse_t, log_const, sum_a, sum_b, beta,
                scale_g * kd_s, scale_g * kd_t, unit_factor, uniform, hot, column,
                DIVERGENCE, UNIT, CE, POWER, TILE,
            )  # fmt: skip
        if grad_student is not None:
            clear_columns(grad_student, vocab, student_columns, gs_stride, tile, TILE)
        if grad_teacher is not None:
            clear_columns(grad_teacher, vocab, teacher_columns, gt_stride, tile, TILE)
    else:
        tl.store(row_loss + row, 0.0)
        if grad_student is not None:
            clear_columns(grad_student, 0, student_columns, gs_stride, tile, TILE)
        if grad_teacher is not None:
            clear_columns(grad_teacher, 0, teacher_columns, gt_stride, tile, TILE)
