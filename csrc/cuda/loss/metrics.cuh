// Computes a row's metrics, see params.h.
#pragma once

#include "value.cuh"

namespace fastkd {
namespace cuda {

// Returns the entropy in nats. `sum` is the sum of exponentials, `moment` that of exponentials times their
// exponents of 2.
__device__ __forceinline__ float entropy(float sum, float moment) {
  return logf(sum) - kLn2 * (moment / sum);
}

// The entropy of a distribution, given that among all columns but the label.
__device__ __forceinline__ float entropy_of_split(float label, float others, float among_others) {
  return (others > 0 ? others * (among_others - logf(others)) : 0) - (label > 0 ? label * logf(label) : 0);
}

template <class AnyRow>
__device__ __forceinline__ void write_metrics(const AnyRow& r, const Totals& found, const Moments& moments,
                                              float divergence, float nll, float* out) {
  if (threadIdx.x != 0) return;
  float student = entropy(found.s_sum, moments.s_moment);
  float teacher = AnyRow::kTeacher ? entropy(found.t_sum, moments.t_moment) : NAN;
  int64_t s_arg = moments.s_arg, t_arg = moments.t_arg;
  if constexpr (AnyRow::kSplits) {
    const Row<float>& split = r.row.divergence;
    student = entropy_of_split(split.q_label, split.q_others, student);
    teacher = entropy_of_split(split.p_label, split.p_others, teacher);
    // -1 stands for the label itself. Of equal logits the first column counts (shards do not compare
    // columns).
    const auto leads = [&](float label, float max, int64_t arg) {
      return label > max || (label == max && !r.args.sharded && r.hot < arg);
    };
    if (leads(found.s_label, found.s_max, s_arg)) s_arg = -1;
    if (leads(found.t_label, found.t_max, t_arg)) t_arg = -1;
  }
  out[metric::kKd] = AnyRow::kTeacher ? r.args.kd_metric * divergence : NAN;
  out[metric::kCe] = r.args.labels ? nll : NAN;
  out[metric::kStudentEntropy] = student;
  out[metric::kTeacherEntropy] = teacher;
  out[metric::kAgreement] = !AnyRow::kTeacher ? NAN : s_arg == t_arg ? 1.0f : 0.0f;
}

}  // namespace cuda
}  // namespace fastkd
