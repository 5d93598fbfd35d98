// Converts the totals to a row's record and back, see params.h. The record's sums are relative to the row
// maxima, the totals to the kernel's shifts.
#pragma once

#include "dense_statistics.cuh"

namespace fastkd {
namespace cuda {

// By how much the row maxima exceed the shifts, as exponents of 2.
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

// Returns the label's exponential relative to the row maximum, exactly 1 where the label is the maximum. The
// record's sum at temperature 1 includes it, the kernel's sum does not; in double it can be added and
// subtracted again.
template <class AnyRow>
__device__ __forceinline__ double label_in_record(const AnyRow& r, const Totals& found) {
  if (AnyRow::kSplits || r.args.soft == Soft::kNone || found.s_label == -INFINITY) return 0;
  return exp2_fast((found.s_label - found.s_max) * kLog2E);
}

// The constants that were subtracted from the logits before the totals were computed.
template <class AnyRow>
__device__ __forceinline__ Origin origin_of(const AnyRow& r) {
  return r.row.lowered ? origin() : Origin{0, 0};
}

// The log-ratio of the row maxima, which a record's ratios are relative to. Powers of ratios have no such
// base.
template <class AnyRow>
__device__ __forceinline__ double base_in_record(const AnyRow& r, const Totals& found) {
  if (AnyRow::Div::kCross) return 0;
  const double s = finite(found.s_max), t = finite(found.t_max);
  return (t * r.args.temperature_ratio - s) * r.args.inverse_temperature;
}

// The label's logit, which the kernel's sum of logits leaves out and the record's includes, in the shard that
// has the label; 0 elsewhere.
template <class AnyRow>
__device__ __forceinline__ double split_logit(const AnyRow& r, const Totals& found) {
  return AnyRow::kSplits && found.s_label != -INFINITY ? found.s_label : 0.0f;
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
  const auto moment_of = [](double moment, double distance, double sum, double to_log2) {
    return (moment - distance * sum) / to_log2;
  };
  const Origin from = origin_of(r);
  out[record::kMaxS] = double(found.s_max) + from.s;
  out[record::kMaxT] = double(found.t_max) + from.t;
  out[record::kZS] = s_sum;
  out[record::kZT] = t_sum;
  out[record::kZCe] =
      r.args.soft == Soft::kNone ? 0 : found.others * exp2_fast(-d.soft) + label_in_record(r, found);
  const double base = base_in_record(r, found);
#pragma unroll
  for (int k = 0; k < AnyRow::Div::kStreams; ++k) {
    out[record::kStream0 + k] = stream[k] - base * (r.args.teacher_power[k] != 0 ? t_sum : s_sum);
  }
  out[record::kCrossShift] = found.cross_shift;
  out[record::kLogitSum] = found.logits + split_logit(r, found) - double(r.args.vocab) * finite(found.s_max);
  out[record::kLabelS] = double(found.s_label) + from.s;
  out[record::kLabelT] = double(found.t_label) + from.t;
  if (r.args.metrics) {
    out[record::kMomentS] = moment_of(moments.s_moment * exp2_fast(-d.s), d.s, s_sum, r.args.student_to_log2);
    out[record::kMomentT] = moment_of(moments.t_moment * exp2_fast(-d.t), d.t, t_sum, r.args.teacher_to_log2);
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
  if (r.is_far(found.s_max, found.t_max)) r.lower(found.s_max, found.t_max);
  const Origin from = origin_of(r);
  found.s_max -= from.s, found.t_max -= from.t;
  r.choose_shifts(found.s_max, found.t_max);
  const Distance d = distance_of(r, found);
  found.s_label = static_cast<float>(in[record::kLabelS] - from.s);
  found.t_label = static_cast<float>(in[record::kLabelT] - from.t);
  found.s_sum = static_cast<float>(in[record::kZS]) * exp2_fast(d.s);
  found.t_sum = static_cast<float>(in[record::kZT]) * exp2_fast(d.t);
  const double others = in[record::kZCe] - label_in_record(r, found);
  found.others = static_cast<float>(others < 0 ? 0 : others) * exp2_fast(d.soft);
  const double base = base_in_record(r, found);
#pragma unroll
  for (int k = 0; k < kMaxStreams; ++k) {
    if (k >= AnyRow::Div::kStreams) {
      found.stream[k] = 0;
      continue;
    }
    const double sum = in[r.args.teacher_power[k] != 0 ? record::kZT : record::kZS];
    found.stream[k] = static_cast<float>(in[record::kStream0 + k] + base * sum);
  }
  rescale_streams<typename AnyRow::Div>(r.args, found.stream, d.s, d.t);
  found.cross_shift = static_cast<float>(in[record::kCrossShift]);
  found.logits = static_cast<float>(in[record::kLogitSum] + in[record::kColumns] * finite(found.s_max) -
                                    split_logit(r, found));
  if (threadIdx.x != 0 || !r.args.metrics) return found;
  const auto moment_of = [](double moment, double sum, double to_log2, float distance) {
    return static_cast<float>(moment * to_log2 + distance * sum) * exp2_fast(distance);
  };
  moments->s_moment = moment_of(in[record::kMomentS], in[record::kZS], r.args.student_to_log2, d.s);
  moments->t_moment = moment_of(in[record::kMomentT], in[record::kZT], r.args.teacher_to_log2, d.t);
  moments->s_arg = static_cast<int64_t>(in[record::kArgS]);
  moments->t_arg = static_cast<int64_t>(in[record::kArgT]);
  return found;
}

}  // namespace cuda
}  // namespace fastkd
