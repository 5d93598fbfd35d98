// Computes the row's constants and its loss from the sums.
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

// Normalises the streams by their sums of exponentials. Equal rows have equal sums; everything here is then
// exactly 0 where it should be.
template <class D>
__device__ __forceinline__ void normalise_streams(const DenseArgs& args, const Totals& found,
                                                  Row<float>& out) {
  if constexpr (!D::kCross) {
#pragma unroll
    for (int k = 0; k < D::kStreams; ++k) {
      out.stream[k] = found.stream[k] / (args.teacher_power[k] != 0 ? found.t_sum : found.s_sum);
    }
  } else {
    const float quotient = found.t_sum / found.s_sum, log_quotient = logf(quotient);
#pragma unroll
    for (int k = 0; k < D::kStreams; ++k) {
      // The scale is a factor that all streams have in common, whose rounding their differences do not see,
      // times the rest.
      const float power = args.total_power[k], of_teacher = args.teacher_power[k];
      const float common = power == 1 ? 1 / found.s_sum : expf(-power * logf(found.s_sum));
      const float shift = k == 0 ? kLn2 * found.cross_shift : 0;
      out.scale[k] = common * expf(fmaf(-of_teacher, log_quotient, shift));
      if (power == 1 && of_teacher == 1) out.scale[k] = 1 / found.t_sum;
      out.stream[k] = found.stream[k] * out.scale[k];
    }
    out.cross_shift = found.cross_shift;
    out.cross_inverse = found.stream[0] == 0 ? 0 : 1 / found.stream[0];
    out.log_cross = fmaf(kLn2, found.cross_shift, logf(found.stream[0] / found.s_sum)) -
                    args.teacher_power[0] * log_quotient;
  }
}

// The two classes label / others at the divergence's temperatures. Let d be the difference of the log-odds,
// which keeps small differences of the logits. Then
//   log p_label - log q_label = -log1p(q_others expm1(-d)), and likewise for the others.
template <class AnyRow>
__device__ __forceinline__ void split_label(const AnyRow& r, const Totals& found, Row<float>& out) {
  const float bits_s = fmaf(found.s_label, r.args.student_to_log2, -r.row.s_shift) - log2f(found.s_sum);
  const float bits_t = fmaf(found.t_label, r.args.teacher_to_log2, -r.row.t_shift) - log2f(found.t_sum);
  const Split student = split(bits_s), teacher = split(bits_t);
  out.q_label = student.label, out.q_others = student.others;
  out.p_label = teacher.label, out.p_others = teacher.others;
  const float difference = r.raw_log_ratio(found.s_label, found.t_label) + out.log_ratio_offset;
  if (fabsf(difference) < 1) {
    out.label_ratio = -log1pf(student.others * expm1f(-difference));
    out.others_ratio = -log1pf(student.label * expm1f(difference));
  } else {
    out.label_ratio = teacher.log_label - student.log_label;
    out.others_ratio = teacher.log_others - student.log_others;
  }
}

// Computes the softmax at temperature 1. Returns the label's negative log-probability.
template <class AnyRow>
__device__ __forceinline__ float settle_softmax(AnyRow& r, const Totals& found) {
  auto& row = r.row;
  if constexpr (AnyRow::kSplits) {
    // The label's logit may be far above the others, which the exponentials are relative to.
    const Split at_one = split(fmaf(found.s_label, kLog2E, -row.soft_shift) - log2f(found.others));
    row.label = at_one.label;
    row.others = at_one.others;
    row.soft_inverse = found.others > 0 ? at_one.others / found.others : 0;
    row.lse = fmaf(row.soft_shift, kLn2, logf(found.others)) - at_one.log_others;
    if (!(found.others > 0)) row.lse = found.s_label;
    return -at_one.log_label;
  } else {
    const float label =
        r.soft_exponential(found.s_label, r.student_exponential(found.s_label), row.soft_shift);
    const float sum = found.others + label;
    row.soft_inverse = 1 / sum;
    row.label = label * row.soft_inverse;
    row.others = found.others * row.soft_inverse;
    row.lse = fmaf(row.soft_shift, kLn2, logf(sum));
    return row.others < row.label ? log1pf(found.others / label) : row.lse - found.s_label;
  }
}

// Sets all of RowStatistics except the divergence's sums. Returns the loss without the divergence; `nll`
// receives the cross-entropy with label smoothing, for the metrics.
template <class AnyRow>
__device__ __forceinline__ float settle(AnyRow& r, const Totals& found, float* nll) {
  const DenseArgs& args = r.args;
  auto& row = r.row;
  // Where the label is treated apart and is the only entry, there are no exponentials to scale.
  row.s_inverse = AnyRow::kSplits && found.s_sum == 0 ? 0 : 1 / found.s_sum;
  row.t_inverse = AnyRow::kSplits && found.t_sum == 0 ? 0 : 1 / found.t_sum;
  if constexpr (AnyRow::kTeacher) {
    row.divergence.log_ratio_offset = fmaf(row.s_shift - row.t_shift, kLn2, logf(found.s_sum / found.t_sum));
    normalise_streams<typename AnyRow::Div>(args, found, row.divergence);
    if constexpr (AnyRow::kSplits) split_label(r, found, row.divergence);
  }
  const float hard = settle_softmax(r, found);
  const float logits = AnyRow::kSplits ? found.logits + found.s_label : found.logits;
  const float uniform = row.lse - logits / row.columns;
  // A weight of 0 must not be multiplied by an infinite term.
  float loss = 0;
  if (args.hard_weight != 0) loss += args.hard_weight * hard;
  if (args.uniform_weight != 0) loss += args.uniform_weight * uniform;
  if (args.z_loss != 0) loss += args.z_loss * r.lse() * r.lse();
  if constexpr (AnyRow::kHasExtra) {
    const float e = args.label_smoothing;
    *nll = (e != 1 ? (1 - e) * hard : 0) + (e != 0 ? e * uniform : 0);
  }
  return loss;
}

}  // namespace cuda
}  // namespace fastkd
