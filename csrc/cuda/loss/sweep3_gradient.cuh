// The last sweep: both gradients, each rounded once to the dtype of its logits.
#pragma once

#include "row.cuh"

namespace fastkd {
namespace cuda {

// A function apart from the student's gradient, because few calls want both.
template <class AnyRow>
__device__ __forceinline__ void write_teacher(const AnyRow& r, int column, const float (&s)[AnyRow::kGroup],
                                              const float (&t)[AnyRow::kGroup], float by_teacher,
                                              const RowView<typename AnyRow::Element>& gradient) {
  constexpr int kGroup = AnyRow::kGroup;
  float by_t[kGroup];
#pragma unroll
  for (int k = 0; k < kGroup; ++k) {
    float of_t = r.divergence.teacher(r.entry(s[k], t[k]), r.row.divergence);
    if (AnyRow::kSplits && column + k == r.hot) of_t = r.divergence.label_teacher(r.row.divergence);
    by_t[k] = by_teacher * of_t;
  }
  gradient.write(column, r.args.vocab, by_t);
}

// Writes the gradients of row `index`. A sparse teacher's divergence has the gradient coefficient * q here.
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
  // A call without terms at temperature 1 has a weight of exactly 0, whatever the log-sum-exp.
  const float z_weight = args.z_loss != 0 ? 2 * args.z_loss * r.lse() : 0.0f;
  const float soft = scale * (cross_entropy + z_weight);
  const float uniform = args.uniform_weight != 0 ? scale * args.uniform_weight / row.columns : 0.0f;
  const float hard = scale * args.hard_weight;
  const float at_label = args.soft_gradient ? (soft - hard) * row.label - hard * row.others : 0.0f;

  const float soft_by_sum = soft * row.soft_inverse;

  // Backwards, because the caches still hold the end of the row.
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  int g = thread + (r.end - r.begin - 1 - thread + threads) / threads *
                       threads;  // the thread's first group past the row
#pragma unroll 1
  while ((g -= threads) >= 0) {
    const int column = r.first + (r.begin + g) * kGroup;
    float s[kGroup], t[kGroup], e_s[kGroup], by_s[kGroup];
    r.load(column, s, t);
    const bool has_label = r.has_label(column);
    if constexpr (AnyRow::kTeacher) {
      if (wants_teacher) write_teacher(r, column, s, t, by_teacher, grad_teacher);
    }
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      if constexpr (AnyRow::kTeacher) {
        const Entry<float> e = r.entry(s[k], t[k]);
        e_s[k] = e.es;
        by_s[k] = fmaf(by_student, r.divergence.student(e, row.divergence), -uniform);
      } else {
        e_s[k] = r.student_exponential(s[k]);
        by_s[k] = fmaf(by_q, e_s[k], -uniform);
      }
    }
    if (has_label) {
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        if (column + k != r.hot) continue;
        if constexpr (AnyRow::kSplits) {
          by_s[k] = fmaf(by_student, r.divergence.label_student(row.divergence), -uniform);
        }
        by_s[k] += at_label;
        s[k] = -INFINITY, e_s[k] = 0;  // the terms below then add nothing to it
      }
    }
    if (args.soft_gradient) {
      float q[kGroup];
      r.soft_exponentials(s, e_s, row.soft_shift, q);
#pragma unroll
      for (int k = 0; k < kGroup; ++k) by_s[k] = fmaf(soft_by_sum, q[k], by_s[k]);
    }
    if (wants_student) grad_student.write(column, args.vocab, by_s);
  }
}

// Sets columns [begin, end) of a gradient row to `value`.
template <class E, class P>
__device__ __forceinline__ void fill_gradient(const DenseArgs& args, const P& place, const Rows& gradient,
                                              int64_t row, int64_t begin, int64_t end, float value) {
  if (!gradient.data) return;
  int from = static_cast<int>(begin), to = static_cast<int>(end);
  place.share_columns(from, to);
  fill_row(row_of<E>(gradient, row, args.inner), from, to, value);
}

// Clears the gradient of a teacher that is not read, for any dtype: zeros are the same for all dtypes of a
// size.
template <class P>
__device__ __forceinline__ void clear_gradient(const DenseArgs& args, const P& place, const Rows& gradient,
                                               int64_t row) {
  if (gradient.dtype == Dtype::kFloat32) {
    fill_gradient<Float32>(args, place, gradient, row, 0, gradient.columns, 0.0f);
  } else {
    fill_gradient<BFloat16>(args, place, gradient, row, 0, gradient.columns, 0.0f);
  }
}

}  // namespace cuda
}  // namespace fastkd
