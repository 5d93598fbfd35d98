// A row's record, see params.h: the totals relative to the largest logits instead of the kernel's shifts.
#pragma once

#include "dense_statistics.cuh"

namespace fastkd {
namespace cuda {

// The exponents of 2 between the largest logits and the shifts.
struct Distance {
  float s, t, soft;
};

template <class AnyRow>
__device__ __forceinline__ Distance distance_of(const AnyRow& r, const Totals& found) {
  const auto from = [](float max, float to_log2, float shift) {
    return max == -INFINITY ? 0.0f : fmaf(max, to_log2, -shift);
  };
  Distance d;
  d.s = from(found.s_max, r.args.student_to_log2, r.row.s_shift);
  d.t = from(found.t_max, r.args.teacher_to_log2, r.row.t_shift);
  d.soft = r.args.soft == Soft::kSeparate ? from(found.s_max, kLog2E, r.row.soft_shift)
           : r.args.soft == Soft::kSquare ? 2 * d.s
                                          : d.s;
  return d;
}

// The label's exponential relative to the largest logit, exactly 1 where it is that. The kernel keeps it out
// of the sum at temperature 1 that the record holds; doubles let it be taken out of there again.
template <class AnyRow>
__device__ __forceinline__ double label_in_record(const AnyRow& r, const Totals& found) {
  if (AnyRow::kSplits || r.args.soft == Soft::kNone || found.s_label == -INFINITY) return 0;
  return exp2_fast((found.s_label - found.s_max) * kLog2E);
}

template <class AnyRow>
__device__ __forceinline__ void write_record(const AnyRow& r, const Totals& found, const Moments& moments,
                                             double* out) {
  if (threadIdx.x != 0) return;
  const Distance d = distance_of(r, found);
  float stream[kMaxStreams];
#pragma unroll
  for (int k = 0; k < kMaxStreams; ++k) stream[k] = found.stream[k];
  rescale_streams<typename AnyRow::Div>(r.args, stream, -d.s, -d.t);
  const double s_sum = found.s_sum * exp2_fast(-d.s), t_sum = found.t_sum * exp2_fast(-d.t);
  const auto moment_of = [](double moment, double shift, double sum, double to_log2) {
    return (moment + shift * sum) / to_log2;
  };
  out[record::kMaxS] = found.s_max;
  out[record::kMaxT] = found.t_max;
  out[record::kZS] = s_sum;
  out[record::kZT] = t_sum;
  out[record::kZOne] =
      r.args.soft == Soft::kNone ? 0 : found.others * exp2_fast(-d.soft) + label_in_record(r, found);
  out[record::kStream0] = stream[0];
  out[record::kStream1] = stream[1];
  out[record::kStream2] = stream[2];
  out[record::kCrossShift] = found.cross_shift;
  out[record::kLogitSum] = found.logits;
  out[record::kLabelS] = found.s_label;
  out[record::kLabelT] = found.t_label;
  if (r.args.metrics) {
    out[record::kMomentS] =
        moment_of(moments.s_moment * exp2_fast(-d.s), r.row.s_shift, s_sum, r.args.student_to_log2);
    out[record::kMomentT] =
        moment_of(moments.t_moment * exp2_fast(-d.t), r.row.t_shift, t_sum, r.args.teacher_to_log2);
    out[record::kArgS] = static_cast<double>(moments.s_arg);
    out[record::kArgT] = static_cast<double>(moments.t_arg);
  }
  out[record::kColumns] = r.args.vocab;
}

template <class AnyRow>
__device__ __forceinline__ Totals read_record(AnyRow& r, const double* in, Moments* moments) {
  Totals found;
  found.s_max = static_cast<float>(in[record::kMaxS]);
  found.t_max = static_cast<float>(in[record::kMaxT]);
  r.choose_shifts(found.s_max, found.t_max);
  const Distance d = distance_of(r, found);
  found.s_label = static_cast<float>(in[record::kLabelS]);
  found.t_label = static_cast<float>(in[record::kLabelT]);
  found.s_sum = static_cast<float>(in[record::kZS]) * exp2_fast(d.s);
  found.t_sum = static_cast<float>(in[record::kZT]) * exp2_fast(d.t);
  const double others = in[record::kZOne] - label_in_record(r, found);
  found.others = static_cast<float>(others < 0 ? 0 : others) * exp2_fast(d.soft);
#pragma unroll
  for (int k = 0; k < kMaxStreams; ++k) found.stream[k] = static_cast<float>(in[record::kStream0 + k]);
  rescale_streams<typename AnyRow::Div>(r.args, found.stream, d.s, d.t);
  found.cross_shift = static_cast<float>(in[record::kCrossShift]);
  found.logits = static_cast<float>(in[record::kLogitSum]);
  if (threadIdx.x != 0 || !r.args.metrics) return found;
  const auto moment_of = [](double moment, double shift, double sum, double to_log2, float by) {
    return static_cast<float>(moment * to_log2 - shift * sum) * exp2_fast(by);
  };
  moments->s_moment =
      moment_of(in[record::kMomentS], r.row.s_shift, in[record::kZS], r.args.student_to_log2, d.s);
  moments->t_moment =
      moment_of(in[record::kMomentT], r.row.t_shift, in[record::kZT], r.args.teacher_to_log2, d.t);
  moments->s_arg = static_cast<int64_t>(in[record::kArgS]);
  moments->t_arg = static_cast<int64_t>(in[record::kArgT]);
  return found;
}

}  // namespace cuda
}  // namespace fastkd
