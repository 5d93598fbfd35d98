// The last sweep: both gradients, each rounded once to its logits' type.
#pragma once

#include "dense_row.cuh"

namespace fastkd {
namespace cuda {

// `coefficient`: of q, where the kernel does not see a sparse teacher.
template <class AnyRow>
__device__ __forceinline__ void write_gradients(const AnyRow& r, int64_t index) {
  using E = typename AnyRow::Element;
  constexpr int kGroup = AnyRow::kGroup;
  const DenseArgs& args = r.args;
  const RowStatistics& row = r.row;
  const bool wants_student = args.grad_student.data,
             wants_teacher = AnyRow::kTeacher && args.grad_teacher.data;
  if (!wants_student && !wants_teacher) return;
  RowView<E> grad_student = row_of<E>(args.grad_student, index, args.inner);
  RowView<E> grad_teacher = row_of<E>(args.grad_teacher, index, args.inner);
  const float scale = args.grad_scale[index];
  grad_student.vector_end = vector_end_of(grad_student, r.first, args.vocab);
  grad_teacher.vector_end = vector_end_of(grad_teacher, r.first, args.vocab);
  const float by_student = scale * args.kd_by_student, by_teacher = scale * args.kd_by_teacher;
  const float by_q = AnyRow::kSparse ? by_student * args.coefficient[index] * row.s_inverse : 0.0f;
  const float cross_entropy = args.hard_weight + args.uniform_weight;
  // A row without the terms at temperature 1 has a weight of exactly 0, whatever its log-sum-exp.
  const float z_weight = args.z_loss != 0 ? 2 * args.z_loss * row.lse : 0.0f;
  const float soft = scale * (cross_entropy + z_weight);
  const float uniform = args.uniform_weight != 0 ? scale * args.uniform_weight / row.columns : 0.0f;
  const float hard = scale * args.hard_weight;
  const float soft_at_label =
      args.soft_gradient ? (soft - hard) * row.label - hard * row.others - uniform : 0.0f;

  // Backwards: the end of the row is what the caches still hold.
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  int g = thread + (r.groups() - 1 - thread + threads) / threads * threads;  // the first one past the row
#pragma unroll 1
  while ((g -= threads) >= 0) {
    const int column = r.first + g * kGroup;
    float s[kGroup], t[kGroup];
    r.load(column, s, t);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      const bool at_label = column + k == r.hot;
      const float e_s = r.student_exponential(s[k]);
      float by_s = 0, by_t = 0;
      if (args.soft_gradient) {
        const float q = r.soft_exponential(s[k], e_s, row.soft_shift) * row.soft_inverse;
        by_s = at_label ? soft_at_label : fmaf(soft, q, -uniform);
      }
      if constexpr (AnyRow::kTeacher) {
        const Entry<float> e = r.entry(s[k], t[k]);
        float of_s = r.divergence.student(e, row.divergence);
        if (AnyRow::kSplits && at_label) of_s = r.divergence.label_student(row.divergence);
        by_s = fmaf(by_student, of_s, by_s);
        if (wants_teacher) {
          float of_t = r.divergence.teacher(e, row.divergence);
          if (AnyRow::kSplits && at_label) of_t = r.divergence.label_teacher(row.divergence);
          by_t = by_teacher * of_t;
        }
      } else if constexpr (AnyRow::kSparse) {
        by_s = fmaf(by_q, e_s, by_s);
      }
      s[k] = by_s;
      t[k] = by_t;
    }
    if (wants_student) grad_student.write(column, args.vocab, s);
    if (wants_teacher) grad_teacher.write(column, args.vocab, t);
  }
}

// Columns [begin, end) of a gradient row become `value`.
template <class E>
__device__ __forceinline__ void fill_gradient(const DenseArgs& args, const Rows& gradient, int64_t row,
                                              int64_t begin, int64_t end, float value) {
  if (!gradient.data) return;
  fill_row(row_of<E>(gradient, row, args.inner), static_cast<int>(begin), static_cast<int>(end), value);
}

// The gradient of a teacher that is not read, whatever its type: zeros are the same in all of a size.
__device__ __forceinline__ void clear_gradient(const DenseArgs& args, const Rows& gradient, int64_t row) {
  if (gradient.dtype == Dtype::kFloat32) {
    fill_gradient<Float32>(args, gradient, row, 0, gradient.columns, 0.0f);
  } else {
    fill_gradient<BFloat16>(args, gradient, row, 0, gradient.columns, 0.0f);
  }
}

}  // namespace cuda
}  // namespace fastkd
