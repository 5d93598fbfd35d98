// The third sweep: both gradients, each rounded once to the dtype of its logits.
#pragma once

#include "row.cuh"

namespace fastkd {
namespace cuda {

// The teacher's gradient of one group, apart from the student's because few calls want both.
template <class Context>
__device__ __forceinline__ void write_teacher_gradient(const Context& row, int column,
                                                       const float (&s)[Context::kGroup],
                                                       const float (&t)[Context::kGroup], float by_teacher,
                                                       const RowView<typename Context::Element>& gradient) {
  constexpr int kGroup = Context::kGroup;
  float grad_t[kGroup];
#pragma unroll
  for (int k = 0; k < kGroup; ++k) {
    float of_t = row.functor.teacher(row.entry(s[k], t[k]), row.divergence);
    if (Context::kSplits && column + k == row.label_column) of_t = row.functor.label_teacher(row.divergence);
    grad_t[k] = by_teacher * of_t;
  }
  gradient.write(column, row.call.vocab, grad_t);
}

template <class Context>
__device__ __forceinline__ GradientFactors gradient_factors(const Context& row, float scale) {
  const Call& call = row.call;
  GradientFactors factors;
  factors.by_student = scale * call.kd_by_student;
  factors.by_teacher = scale * call.kd_by_teacher;
  const float cross_entropy = call.label_weight + call.smoothing_weight;
  // A call without terms at temperature 1 has a weight of exactly 0, whatever the log-sum-exp.
  const float z_weight = call.z_loss != 0 ? 2 * call.z_loss * row.lse_in_memory() : 0.0f;
  const float by_ce_softmax = scale * (cross_entropy + z_weight);
  factors.by_column = call.smoothing_weight != 0 ? scale * call.smoothing_weight / row.columns : 0.0f;
  const float by_label = scale * call.label_weight;
  factors.at_label =
      call.ce_gradient ? (by_ce_softmax - by_label) * row.ce_softmax_label - by_label * row.ce_softmax_others
                       : 0.0f;
  factors.by_ce_exponential = by_ce_softmax * row.inverse_z_ce;
  return factors;
}

// Computes the divergence's part of the student's gradient, for one group, and the student's exponentials.
// `kKept`: from the logarithms that the second sweep has kept.
template <bool kKept, class Context>
__device__ __forceinline__ void load_divergence(const Context& row, int column, float by_q,
                                                float (&s)[Context::kGroup], float (&t)[Context::kGroup],
                                                float (&e_s)[Context::kGroup],
                                                float (&grad_s)[Context::kGroup]) {
  constexpr int kGroup = Context::kGroup;
  const float by_student = row.factors.by_student, by_column = row.factors.by_column;
  row.template load<Context::kTeacher && !kKept>(column, s, t);
  float log[kGroup];
  if constexpr (kKept) row.load_kept(column, log);
#pragma unroll
  for (int k = 0; k < kGroup; ++k) {
    if constexpr (kKept) {
      Entry<float> e;
      e_s[k] = e.es = row.student_exponential(s[k]);
      e.q = __fmul_rn(e.es, row.inverse_z_s);
      grad_s[k] = fmaf(by_student, row.functor.student(e, log[k], row.divergence), -by_column);
    } else if constexpr (Context::kTeacher) {
      const Entry<float> e = row.entry(s[k], t[k]);
      e_s[k] = e.es;
      grad_s[k] = fmaf(by_student, row.functor.student(e, row.divergence), -by_column);
    } else {
      e_s[k] = row.student_exponential(s[k]);
      grad_s[k] = fmaf(by_q, e_s[k], -by_column);
    }
  }
}

// Runs the sweep. With kKept a call has no gradient of the teacher.
template <bool kKept, class Context>
__device__ __forceinline__ void sweep_gradients(const Context& row, RowIndex index, float coefficient) {
  using E = typename Context::Element;
  constexpr int kGroup = Context::kGroup;
  const Call& call = row.call;
  const bool wants_student = call.grad_student.data,
             wants_teacher = Context::kTeacher && !kKept && call.grad_teacher.data;
  RowView<E> grad_student = row_of<E>(call.grad_student, index);
  RowView<E> grad_teacher = row_of<E>(call.grad_teacher, index);
  grad_student.vector_end = computed_here(vector_end_of(grad_student, row.first, call.vocab));
  grad_teacher.vector_end = computed_here(vector_end_of(grad_teacher, row.first, call.vocab));
  const GradientFactors factors = row.factors;
  const float by_q = Context::kSparse ? factors.by_student * coefficient * row.inverse_z_s : 0.0f;

  const auto work = [&](int column) {
    float s[kGroup], t[kGroup], e_s[kGroup], grad_s[kGroup];
    load_divergence<kKept>(row, column, by_q, s, t, e_s, grad_s);
    if constexpr (Context::kTeacher && !kKept) {
      if (wants_teacher) write_teacher_gradient(row, column, s, t, factors.by_teacher, grad_teacher);
    }
    if (row.has_label(column)) {
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        if (column + k != row.label_column) continue;
        if constexpr (Context::kSplits) {
          grad_s[k] = fmaf(factors.by_student, row.functor.label_student(row.divergence), -factors.by_column);
        }
        grad_s[k] += factors.at_label;
        s[k] = -INFINITY, e_s[k] = 0;  // the terms below then add nothing to it
      }
    }
    if (call.ce_gradient) {
      float ce[kGroup];
      row.ce_exponentials(s, e_s, row.shift_ce, ce);
#pragma unroll
      for (int k = 0; k < kGroup; ++k) grad_s[k] = fmaf(factors.by_ce_exponential, ce[k], grad_s[k]);
    }
    if (wants_student) grad_student.write(column, call.vocab, grad_s);
  };
  row.place.template last_sweep<Context::kTeacher, kGroup>(row.first, row.begin, row.end, row.student,
                                                           row.teacher, work);
}

// Writes the gradients of row `index`, given its factors. A sparse teacher's divergence has the gradient
// coefficient * q here.
template <class Context>
__device__ __forceinline__ void write_gradients(const Context& row, RowIndex index, float coefficient = 0) {
  if (!row.call.grad_student.data && !(Context::kTeacher && row.call.grad_teacher.data)) {
    return row.place.template close<Context::kTeacher>(row.student, row.teacher);
  }
  if constexpr (Context::kKeeps) {
    if (row.call.keeps_logs) return sweep_gradients<true>(row, index, coefficient);
  }
  sweep_gradients<false>(row, index, coefficient);
}

// Sets columns [begin, end) of a gradient row to `value`.
template <class E, class P>
__device__ __forceinline__ void fill_gradient(const P& place, const Rows& gradient, RowIndex index,
                                              int64_t begin, int64_t end, float value) {
  if (!gradient.data) return;
  int from = static_cast<int>(begin), to = static_cast<int>(end);
  place.share_columns(from, to);
  fill_row(row_of<E>(gradient, index), from, to, value);
}

// Clears the gradient of a teacher that is not read, for any dtype: zeros are the same for all dtypes of a
// size.
template <class P>
__device__ __forceinline__ void clear_gradient(const P& place, const Rows& gradient, RowIndex index) {
  if (gradient.dtype == Dtype::kFloat32) {
    fill_gradient<Float32>(place, gradient, index, 0, gradient.columns, 0.0f);
  } else {
    fill_gradient<BFloat16>(place, gradient, index, 0, gradient.columns, 0.0f);
  }
}

}  // namespace cuda
}  // namespace fastkd
