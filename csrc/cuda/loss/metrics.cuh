// Computes a row's metrics, see params.h.
#pragma once

#include "value.cuh"

namespace fastkd {
namespace cuda {

// Returns the entropy in nats. `z` is the normaliser, `moment` the sum of exponentials times their exponents
// of 2.
__device__ __forceinline__ float entropy(float z, float moment) { return logf(z) - kLn2 * (moment / z); }

// The entropy of a distribution, given that among all columns but the label.
__device__ __forceinline__ float entropy_of_split(float label, float others, float among_others) {
  return (others > 0 ? others * (among_others - logf(others)) : 0) - (label > 0 ? label * logf(label) : 0);
}

template <class Context>
__device__ __forceinline__ void write_metrics(const Context& row, const Statistics& found,
                                              const Moments& moments, float divergence, float nll,
                                              float* out) {
  if (threadIdx.x != 0 || !row.place.leads()) return;
  float student = entropy(found.z_s, moments.moment_s);
  float teacher = Context::kTeacher ? entropy(found.z_t, moments.moment_t) : NAN;
  int64_t arg_s = moments.arg_s, arg_t = moments.arg_t;
  if constexpr (Context::kSplits) {
    const Row<float>& split = row.divergence;
    student = entropy_of_split(split.q_label, split.q_others, student);
    teacher = entropy_of_split(split.p_label, split.p_others, teacher);
    // -1 stands for the label itself. Of equal logits the first column counts (shards do not compare
    // columns).
    const auto leads = [&](float label, float max, int64_t arg) {
      return label > max || (label == max && !row.call.sharded && row.label_column < arg);
    };
    if (leads(found.label_s, found.max_s, arg_s)) arg_s = -1;
    if (leads(found.label_t, found.max_t, arg_t)) arg_t = -1;
  }
  out[metric::kKd] = Context::kTeacher ? row.call.kd_metric * divergence : NAN;
  out[metric::kCe] = row.call.labels ? nll : NAN;
  out[metric::kStudentEntropy] = student;
  out[metric::kTeacherEntropy] = teacher;
  out[metric::kAgreement] = !Context::kTeacher ? NAN : arg_s == arg_t ? 1.0f : 0.0f;
}

}  // namespace cuda
}  // namespace fastkd
