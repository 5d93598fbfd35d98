// Converts the statistics to a row's record and back, see params.h. The record's sums are relative to the row
// maxima, the statistics to the kernel's shifts.
#pragma once

#include "sweep1_statistics.cuh"

namespace fastkd {
namespace cuda {

// By how much the row maxima exceed the shifts, as exponents of 2.
struct Distance {
  float s, t, ce;
};

template <class Context>
__device__ __forceinline__ Distance distance_of(const Context& row, const Statistics& found) {
  const auto from = [](float max, float log2_scale, float shift) {
    return max == -INFINITY ? 0.0f : fmaf(max, log2_scale, -shift);
  };
  Distance d;
  d.s = from(found.max_s, row.call.log2_scale_s, row.shift_s);
  d.t = from(found.max_t, row.call.log2_scale_t, row.shift_t);
  d.ce = row.call.ce_softmax == CeSoftmax::kSeparate ? from(found.max_s, kLog2E, row.shift_ce)
         : row.call.ce_softmax == CeSoftmax::kSquare ? 2 * d.s
                                                     : d.s;
  return d;
}

// Returns the label's exponential relative to the row maximum, exactly 1 where the label is the maximum. The
// record's sum at temperature 1 includes it, the kernel's sum does not; in double it can be added and
// subtracted again.
template <class Context>
__device__ __forceinline__ double label_in_record(const Context& row, const Statistics& found) {
  if (Context::kSplits || row.call.ce_softmax == CeSoftmax::kNone || found.label_s == -INFINITY) return 0;
  return exp2_fast((found.label_s - found.max_s) * kLog2E);
}

// The constants that were subtracted from the logits before the statistics were computed.
template <class Context>
__device__ __forceinline__ Origin origin_of(const Context& row) {
  return row.lowered ? origin() : Origin{0, 0};
}

// The log-ratio of the row maxima, which a record's ratios are relative to. Powers of ratios have no such
// base.
template <class Context>
__device__ __forceinline__ double base_in_record(const Context& row, const Statistics& found) {
  if (Context::Div::kCross) return 0;
  const double s = finite(found.max_s), t = finite(found.max_t);
  return (t * row.call.temperature_ratio - s) * row.call.inverse_temperature;
}

// The label's logit, which the kernel's sum of logits leaves out and the record's includes, in the shard that
// has the label; 0 elsewhere.
template <class Context>
__device__ __forceinline__ double split_logit(const Context& row, const Statistics& found) {
  return Context::kSplits && found.label_s != -INFINITY ? found.label_s : 0.0f;
}

template <class Context>
__device__ __forceinline__ void write_record(const Context& row, const Statistics& found,
                                             const Moments& moments, double* out) {
  if (threadIdx.x != 0) return;
  const Distance d = distance_of(row, found);
  float stream[kMaxStreams];
#pragma unroll
  for (int k = 0; k < kMaxStreams; ++k) stream[k] = found.stream[k];
  rescale_streams<typename Context::Div>(row.call, stream, -d.s, -d.t);
  const double z_s = found.z_s * exp2_fast(-d.s), z_t = found.z_t * exp2_fast(-d.t);
  const auto moment_of = [](double moment, double distance, double sum, double log2_scale) {
    return (moment - distance * sum) / log2_scale;
  };
  const Origin from = origin_of(row);
  out[record::kMaxS] = double(found.max_s) + from.s;
  out[record::kMaxT] = double(found.max_t) + from.t;
  out[record::kZS] = z_s;
  out[record::kZT] = z_t;
  out[record::kZCe] = row.call.ce_softmax == CeSoftmax::kNone
                          ? 0
                          : found.z_ce_others * exp2_fast(-d.ce) + label_in_record(row, found);
  const double base = base_in_record(row, found);
#pragma unroll
  for (int k = 0; k < Context::Div::kStreams; ++k) {
    out[record::kStream0 + k] = stream[k] - base * (row.call.teacher_power[k] != 0 ? z_t : z_s);
  }
  out[record::kCrossShift] = found.cross_shift;
  out[record::kLogitSum] =
      found.logit_sum + split_logit(row, found) - double(row.call.vocab) * finite(found.max_s);
  out[record::kLabelS] = double(found.label_s) + from.s;
  out[record::kLabelT] = double(found.label_t) + from.t;
  if (row.call.metrics) {
    out[record::kMomentS] = moment_of(moments.moment_s * exp2_fast(-d.s), d.s, z_s, row.call.log2_scale_s);
    out[record::kMomentT] = moment_of(moments.moment_t * exp2_fast(-d.t), d.t, z_t, row.call.log2_scale_t);
    out[record::kArgS] = static_cast<double>(moments.arg_s);
    out[record::kArgT] = static_cast<double>(moments.arg_t);
  }
  out[record::kColumns] = row.call.vocab;
}

template <class Context>
__device__ __forceinline__ Statistics read_record(Context& row, const double* in, Moments* moments) {
  Statistics found;
  found.max_s = static_cast<float>(in[record::kMaxS]);
  found.max_t = static_cast<float>(in[record::kMaxT]);
  if (row.is_far(found.max_s, found.max_t)) row.lower(found.max_s, found.max_t);
  const Origin from = origin_of(row);
  found.max_s -= from.s, found.max_t -= from.t;
  row.choose_shifts(found.max_s, found.max_t);
  const Distance d = distance_of(row, found);
  found.label_s = static_cast<float>(in[record::kLabelS] - from.s);
  found.label_t = static_cast<float>(in[record::kLabelT] - from.t);
  found.z_s = static_cast<float>(in[record::kZS]) * exp2_fast(d.s);
  found.z_t = static_cast<float>(in[record::kZT]) * exp2_fast(d.t);
  const double others = in[record::kZCe] - label_in_record(row, found);
  found.z_ce_others = static_cast<float>(others < 0 ? 0 : others) * exp2_fast(d.ce);
  const double base = base_in_record(row, found);
#pragma unroll
  for (int k = 0; k < kMaxStreams; ++k) {
    if (k >= Context::Div::kStreams) {
      found.stream[k] = 0;
      continue;
    }
    const double sum = in[row.call.teacher_power[k] != 0 ? record::kZT : record::kZS];
    found.stream[k] = static_cast<float>(in[record::kStream0 + k] + base * sum);
  }
  rescale_streams<typename Context::Div>(row.call, found.stream, d.s, d.t);
  found.cross_shift = static_cast<float>(in[record::kCrossShift]);
  found.logit_sum = static_cast<float>(in[record::kLogitSum] + in[record::kColumns] * finite(found.max_s) -
                                       split_logit(row, found));
  if (threadIdx.x != 0 || !row.call.metrics) return found;
  const auto moment_of = [](double moment, double sum, double log2_scale, float distance) {
    return static_cast<float>(moment * log2_scale + distance * sum) * exp2_fast(distance);
  };
  moments->moment_s = moment_of(in[record::kMomentS], in[record::kZS], row.call.log2_scale_s, d.s);
  moments->moment_t = moment_of(in[record::kMomentT], in[record::kZT], row.call.log2_scale_t, d.t);
  moments->arg_s = static_cast<int64_t>(in[record::kArgS]);
  moments->arg_t = static_cast<int64_t>(in[record::kArgT]);
  return found;
}

}  // namespace cuda
}  // namespace fastkd
