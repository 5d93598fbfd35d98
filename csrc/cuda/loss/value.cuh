// The row's loss, and the constants of its gradient, from the statistics.
#pragma once

#include "sweep1_statistics.cuh"

namespace fastkd {
namespace cuda {

// A distribution seen as two classes, the label and all others.
struct Split {
  float label, others;          // probabilities, each with all its digits
  float log_label, log_others;  // in nats
};

// Computes the two classes from log2 of the odds of label to others.
__device__ __forceinline__ Split split(float bits) {
  const float odds = kLn2 * bits, rest = log1pf(expf(-fabsf(odds)));
  Split s;
  s.log_label = fminf(odds, 0.0f) - rest;
  s.log_others = fminf(-odds, 0.0f) - rest;
  s.label = expf(s.log_label);
  s.others = expf(s.log_others);
  return s;
}

// Divides the streams by their normalisers. Equal rows have equal sums, so that everything here is then
// exactly 0 where it should be.
template <class D>
__device__ __forceinline__ void normalise_streams(const Call& call, const Statistics& found,
                                                  Row<float>& out) {
  if constexpr (!D::kCross) {
#pragma unroll
    for (int k = 0; k < D::kStreams; ++k) {
      out.stream[k] = found.stream[k] / (call.teacher_power[k] != 0 ? found.z_t : found.z_s);
    }
  } else {
    const float quotient = found.z_t / found.z_s, log_quotient = logf(quotient);
#pragma unroll
    for (int k = 0; k < D::kStreams; ++k) {
      // The scale is a factor that all streams have in common, whose rounding their differences do not see,
      // times the rest.
      const float power = call.total_power[k], of_teacher = call.teacher_power[k];
      const float common = power == 1 ? 1 / found.z_s : expf(-power * logf(found.z_s));
      const float shift = k == 0 ? kLn2 * found.cross_shift : 0;
      out.scale[k] = common * expf(fmaf(-of_teacher, log_quotient, shift));
      if (power == 1 && of_teacher == 1) out.scale[k] = 1 / found.z_t;
      out.stream[k] = found.stream[k] * out.scale[k];
    }
    out.cross_shift = found.cross_shift;
    out.cross_inverse = found.stream[0] == 0 ? 0 : 1 / found.stream[0];
    out.log_cross = fmaf(kLn2, found.cross_shift, logf(found.stream[0] / found.z_s)) -
                    call.teacher_power[0] * log_quotient;
  }
}

// The two classes label / others at the divergence's temperatures. Let d be the difference of the log-odds,
// which keeps small differences of the logits. Then
//   log p_label - log q_label = -log1p(q_others expm1(-d)), and likewise for the others.
template <class Context>
__device__ __forceinline__ void split_label(const Context& row, const Statistics& found, Row<float>& out) {
  const float bits_s = fmaf(found.label_s, row.call.log2_scale_s, -row.shift_s) - log2f(found.z_s);
  const float bits_t = fmaf(found.label_t, row.call.log2_scale_t, -row.shift_t) - log2f(found.z_t);
  const Split student = split(bits_s), teacher = split(bits_t);
  out.q_label = student.label, out.q_others = student.others;
  out.p_label = teacher.label, out.p_others = teacher.others;
  const float difference = row.log_ratio_raw(found.label_s, found.label_t) + out.log_ratio_offset;
  if (fabsf(difference) < 1) {
    out.label_ratio = -log1pf(student.others * expm1f(-difference));
    out.others_ratio = -log1pf(student.label * expm1f(difference));
  } else {
    out.label_ratio = teacher.log_label - student.log_label;
    out.others_ratio = teacher.log_others - student.log_others;
  }
}

// Computes ce_softmax, the student's softmax at temperature 1. Returns the label's negative log-probability.
template <class Context>
__device__ __forceinline__ float find_ce_softmax(Context& row, const Statistics& found) {
  if constexpr (Context::kSplits) {
    // The label's logit may be far above the others, which the exponentials are relative to.
    const Split at_one = split(fmaf(found.label_s, kLog2E, -row.shift_ce) - log2f(found.z_ce_others));
    row.ce_softmax_label = at_one.label;
    row.ce_softmax_others = at_one.others;
    row.inverse_z_ce = found.z_ce_others > 0 ? at_one.others / found.z_ce_others : 0;
    row.lse = fmaf(row.shift_ce, kLn2, logf(found.z_ce_others)) - at_one.log_others;
    if (!(found.z_ce_others > 0)) row.lse = found.label_s;
    return -at_one.log_label;
  } else {
    const float label =
        row.ce_exponential(found.label_s, row.student_exponential(found.label_s), row.shift_ce);
    const float z_ce = found.z_ce_others + label;
    row.inverse_z_ce = 1 / z_ce;
    row.ce_softmax_label = label * row.inverse_z_ce;
    row.ce_softmax_others = found.z_ce_others * row.inverse_z_ce;
    row.lse = fmaf(row.shift_ce, kLn2, logf(z_ce));
    return row.ce_softmax_others < row.ce_softmax_label ? log1pf(found.z_ce_others / label)
                                                        : row.lse - found.label_s;
  }
}

// Sets the fields of `row` that depend on the statistics, except for the divergence's own sums. Returns the
// loss without the divergence; `nll` receives the cross-entropy with label smoothing, for the metrics.
template <class Context>
__device__ __forceinline__ float normalise(Context& row, const Statistics& found, float* nll) {
  const Call& call = row.call;
  // Where the label is treated apart and is the only entry, there are no exponentials to scale.
  row.inverse_z_s = Context::kSplits && found.z_s == 0 ? 0 : 1 / found.z_s;
  row.inverse_z_t = Context::kSplits && found.z_t == 0 ? 0 : 1 / found.z_t;
  if constexpr (Context::kTeacher) {
    row.divergence.log_ratio_offset = fmaf(row.shift_s - row.shift_t, kLn2, logf(found.z_s / found.z_t));
    normalise_streams<typename Context::Div>(call, found, row.divergence);
    if constexpr (Context::kSplits) split_label(row, found, row.divergence);
  }
  const float label_nll = find_ce_softmax(row, found);
  const float logit_sum = Context::kSplits ? found.logit_sum + found.label_s : found.logit_sum;
  const float mean_nll = row.lse - logit_sum / row.columns;
  // A weight of 0 must not be multiplied by an infinite term.
  float loss = 0;
  if (call.label_weight != 0) loss += call.label_weight * label_nll;
  if (call.smoothing_weight != 0) loss += call.smoothing_weight * mean_nll;
  if (call.z_loss != 0) loss += call.z_loss * row.lse_in_memory() * row.lse_in_memory();
  if constexpr (Context::kHasExtra) {
    const float e = call.label_smoothing;
    *nll = (e != 1 ? (1 - e) * label_nll : 0) + (e != 0 ? e * mean_nll : 0);
  }
  return loss;
}

}  // namespace cuda
}  // namespace fastkd
