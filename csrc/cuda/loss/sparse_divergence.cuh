// A sparse teacher's divergence of one row and its gradients, in float64, for each of the tails.
// csrc/cpu/loss/sparse_teacher.h does the same on the CPU, and fastkd/backends/sparse.py in torch.
#pragma once

#include "sparse_classes.cuh"
#include "sweep3_gradient.cuh"

namespace fastkd {
namespace cuda {

struct SparseDivergence {
  double value = 0;
  double coefficient = 0;  // factor of q in the gradient by s / T, at all columns but the entries
  int classes = 0;         // how many classes the teacher's distribution has; 0 in a row without entries
};

// Tail::kDrop: only the entries' terms of the forward KL count, with the teacher's probabilities as weights,
// not renormalised.
__device__ __forceinline__ SparseDivergence find_dropped(const SparseCall& teacher, const SparseSums& sums) {
  const SparseRow entries = sparse_row(teacher);
  double value[1] = {0};
  for (int i = threadIdx.x; i < teacher.entries; i += blockDim.x) {
    if (entries.column[i] < 0) continue;
    const double weight = exp(entries.log_p[i]), ratio = entries.log_p[i] - entries.log_q[i];
    value[0] += times(weight, ratio);
    entries.by_student[i] = sums.mass_p * exp(entries.log_q[i]) - weight;
    entries.by_teacher[i] = weight * (ratio + 1);
  }
  reduce_block<SumOfDoubles>(value);
  return {value[0], sums.mass_p, teacher.entries};
}

// The divergence of the classes, see SparseTeacher in params.h.
template <class D>
__device__ __forceinline__ SparseDivergence find_classes(const D& functor, const SparseCall& teacher,
                                                         const SparseSums& sums, RowIndex index) {
  const SparseRow entries = sparse_row(teacher);
  const bool bucket = teacher.tail == Tail::kBucket;
  const int rest = teacher.entries, count = rest + (teacher.has_rest ? 1 : 0);
  const double rest_p = rest_of(sums.mass_p), rest_q = rest_of(sums.mass_q);
  // ClassDivergence normalises the classes.
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    if (i == rest) {
      entries.log_p[i] = bucket ? log(rest_p) : -INFINITY;
      entries.log_q[i] = log(rest_q);
    }
    entries.log_p[i] /= teacher.teacher_temperature;
    entries.log_q[i] /= teacher.class_temperature;
  }
  ClassDivergence<D> divergence(functor, teacher, count);
  SparseDivergence found;
  found.classes = count;
  found.value = divergence.find();
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    entries.by_student[i] = divergence.student(i) / teacher.class_temperature;
    if (teacher.grad) entries.by_teacher[i] = divergence.teacher(i) / teacher.teacher_temperature;
  }
  __syncthreads();
  if (teacher.has_rest) found.coefficient = entries.by_student[rest] / rest_q;
  if (!bucket || !teacher.grad) return found;
  // The gradient so far is by the logarithm of each class. The entries' logarithms are the teacher's own, and
  // the bucket's mass is 1 less their masses.
  const double by_mass = entries.by_teacher[rest] / rest_p;
  for (int i = threadIdx.x; i < rest; i += blockDim.x) {
    entries.by_teacher[i] -= exp(double{logprob_at(teacher, index, i)}) * by_mass;
  }
  return found;
}

// Sets the entries' gradients, each by the thread that reads it again.
template <class D>
__device__ __forceinline__ SparseDivergence find_divergence(const D& functor, const SparseCall& teacher,
                                                            const SparseSums& sums, RowIndex index) {
  if (!sums.any) return {};
  if (teacher.tail == Tail::kDrop) return find_dropped(teacher, sums);
  return find_classes(functor, teacher, sums, index);
}

// Writes the gradient by the log-probabilities; 0 for entries that do not exist. `scale`: the divergence's
// factor.
__device__ __forceinline__ void write_by_logprobs(const SparseCall& teacher, RowIndex index, double scale) {
  if (!teacher.grad) return;
  const SparseRow entries = sparse_row(teacher);
  for (int i = threadIdx.x; i < teacher.entries; i += blockDim.x) {
    teacher.grad[index.row * int64_t{teacher.entries} + i] =
        entries.column[i] < 0 ? 0.0f : static_cast<float>(scale * entries.by_teacher[i]);
  }
}

// Writes the metrics that depend on the teacher. `max_s`: the student's largest logit.
__device__ __forceinline__ void write_sparse_metrics(const Call& call, const SparseCall& teacher,
                                                     const SparseDivergence& found, float max_s, float* out) {
  const SparseRow entries = sparse_row(teacher);
  // The entropy is relative to the most likely class, since all may be too unlikely for an exponential of
  // their own. The agreement is about the most likely entry.
  double top[2] = {-INFINITY, -INFINITY};
  for (int i = threadIdx.x; i < found.classes; i += blockDim.x) {
    top[0] = fmax(top[0], entries.log_p[i]);
    if (i < teacher.entries) top[1] = fmax(top[1], entries.log_p[i]);
  }
  reduce_block<MaxOfDoubles>(top);
  int best[1] = {INT_MAX};
  double sum[2] = {0, 0};
  for (int i = threadIdx.x; i < found.classes; i += blockDim.x) {
    const double away = entries.log_p[i] - top[0], e = exp(away);
    sum[0] += e;
    sum[1] += times(e, away);
    if (i < teacher.entries && entries.column[i] >= 0 && entries.log_p[i] == top[1])
      best[0] = min(best[0], i);
  }
  reduce_block<First>(best);
  reduce_block<SumOfDoubles>(sum);
  if (threadIdx.x != 0) return;
  const bool agrees = best[0] != INT_MAX && entries.logit[best[0]] == max_s;
  out[metric::kKd] = static_cast<float>(call.kd_metric * found.value);
  out[metric::kTeacherEntropy] =
      found.classes == 0 ? 0.0f : static_cast<float>(log(sum[0]) - sum[1] / sum[0]);
  out[metric::kAgreement] = agrees ? 1.0f : 0.0f;
}

// Writes the student's gradient at the entries again, now complete, so that each is rounded once.
template <class Context>
__device__ __forceinline__ void write_entries(const Context& row, const SparseCall& teacher, RowIndex index) {
  const Call& call = row.call;
  if (!call.grad_student.data) return;
  const SparseRow entries = sparse_row(teacher);
  const auto gradient = row_of<typename Context::Element>(call.grad_student, index);
  const GradientFactors factors = gradient_factors(row, call.grad_scale[index.row]);
  for (int i = threadIdx.x; i < teacher.entries; i += blockDim.x) {
    const int column = entries.column[i];
    if (column < 0) continue;
    double grad = factors.by_student * entries.by_student[i] - factors.by_column;
    if (column == row.label_column) {
      grad += factors.at_label;
    } else if (call.ce_gradient) {
      const float s = entries.logit[i];
      grad += factors.by_ce_exponential * row.ce_exponential(s, row.student_exponential(s), row.shift_ce);
    }
    gradient.set(column, static_cast<float>(grad));
  }
}

}  // namespace cuda
}  // namespace fastkd
