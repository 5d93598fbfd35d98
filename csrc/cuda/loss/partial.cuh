// The sums of a part of the row, which a thread, a warp or the whole row has: relative to shifts of its own,
// from one shift to another, and as a packet's words.
#pragma once

#include "row.cuh"

namespace fastkd {
namespace cuda {

struct Partial {
  float max_s = -INFINITY, max_t = -INFINITY;
  // The logits that the exponentials are relative to. The maxima may exceed them by a margin, so that most
  // groups with a larger logit need no rescaling.
  float anchor_s = -INFINITY, anchor_t = -INFINITY;
  float shift_s = 0, shift_t = 0;
  float z_s = 0, z_t = 0;                 // normalisers at the divergence's temperatures
  float z_ce_others = 0;                  // normaliser at temperature 1, without the label's exponential
  float stream[kMaxStreams] = {0, 0, 0};  // the divergence's streams
  float logit_sum = 0;                    // plain sum of the student's logits
  float label_s = 0, label_t = 0;         // the label's logits, in the part that has the label
  float moment_s = 0, moment_t = 0;       // sums of exponentials times their exponents of 2
  int arg_s = 0, arg_t = 0;               // columns of the largest logits
};

// Rescales a divergence's streams when the teacher's exponentials are multiplied by 2^by_t and the student's
// by 2^by_s. Where the two are equal, so are the factors, to the bit.
template <class D>
__device__ __forceinline__ void rescale_streams(const Call& call, float (&stream)[kMaxStreams], float by_s,
                                                float by_t) {
#pragma unroll
  for (int k = 0; k < D::kStreams; ++k) {
    const float by = fmaf(call.teacher_power[k], by_t - by_s, call.total_power[k] * by_s);
    if constexpr (D::kCross) {
      stream[k] = stream[k] == 0 ? 0.0f : stream[k] * exp2_fast(by);
    } else {
      // Each stream depends on the exponentials of one side only. A factor that vanishes removes an infinite
      // ratio with it.
      stream[k] = times(exp2_fast(call.teacher_power[k] != 0 ? by_t : by_s), stream[k]);
    }
  }
}

// Rescales a sum of exponentials times exponents, whose shift changes with that of the exponentials.
__device__ __forceinline__ float rescaled_moment(float moment, float sum, float by) {
  return times(exp2_fast(by), fmaf(by, sum, moment));
}

// Makes the exponentials relative to `to_s` and `to_t`, the shifts for the maxima.
template <class Context>
__device__ __forceinline__ void rescale(const Context& row, Partial& part, float to_s, float to_t) {
  const Call& call = row.call;
  const float by_s = change_of(part.anchor_s, part.shift_s, to_s);
  const float by_t = change_of(part.anchor_t, part.shift_t, to_t);
  const float factor_s = exp2_fast(by_s);
  part.z_ce_others *= row.ce_factor(part.anchor_s, factor_s, row.ce_shift_of(part.anchor_s, part.shift_s),
                                    row.ce_shift_of(part.max_s, to_s));
  rescale_streams<typename Context::Div>(call, part.stream, by_s, by_t);
  if (Context::kHasExtra && call.metrics) {
    part.moment_s = rescaled_moment(part.moment_s, part.z_s, by_s);
    part.moment_t = rescaled_moment(part.moment_t, part.z_t, by_t);
  }
  part.z_s *= factor_s;
  part.z_t *= exp2_fast(by_t);
  part.anchor_s = anchor_of(part.max_s, call.log2_scale_s);
  part.anchor_t = anchor_of(part.max_t, call.log2_scale_t);
  part.shift_s = to_s;
  part.shift_t = to_t;
}

// Makes the exponentials relative to the largest logits so far.
template <class Context>
__device__ __forceinline__ void raise(const Context& row, Partial& part) {
  rescale(row, part, shift_of(part.max_s, row.call.log2_scale_s),
          shift_of(part.max_t, row.call.log2_scale_t));
}

// A packet's words, in their order: the maxima, the sums of for_each_sum(), and for metrics the columns of
// the maxima. The exponentials of a packet are relative to its maxima.
template <class D, bool kHasExtra>
struct PartialWords {
  static constexpr int kMaxima = 2, kColumns = kHasExtra ? 2 : 0;
  static constexpr int kSums = 5 + (D::kSplitsLabel ? 1 : 0) + D::kStreams + (kHasExtra ? 2 : 0);
  static constexpr int kCount = kMaxima + kSums + kColumns;
};

template <class Context>
using WordsOf = PartialWords<typename Context::Div, Context::kHasExtra>;

// Calls `use` with each sum.
template <class Context, class Use>
__device__ __forceinline__ void for_each_sum(Partial& part, const Use& use) {
  use(part.z_s);
  use(part.z_t);
  use(part.z_ce_others);
  use(part.logit_sum);
  use(part.label_s);
  if constexpr (Context::kSplits) use(part.label_t);
#pragma unroll
  for (int k = 0; k < Context::Div::kStreams; ++k) use(part.stream[k]);
  if constexpr (Context::kHasExtra) {
    use(part.moment_s);
    use(part.moment_t);
  }
}

// Replaces the sums, each relative to the same shifts, by their totals over the lanes.
template <class Context>
__device__ __forceinline__ void add_lanes(Partial& part) {
  float sum[WordsOf<Context>::kSums];
  int i = 0;
  for_each_sum<Context>(part, [&](float x) { sum[i++] = x; });
  reduce_lanes<Sum>(sum);
  i = 0;
  for_each_sum<Context>(part, [&](float& x) { x = sum[i++]; });
}

template <class Context>
__device__ __forceinline__ void pack(Partial& part,
                                     uint4 (&packet)[kPacketVectors<WordsOf<Context>::kCount>]) {
  float word[WordsOf<Context>::kCount] = {part.max_s, part.max_t};
  int i = WordsOf<Context>::kMaxima;
  for_each_sum<Context>(part, [&](float x) { word[i++] = x; });
  if constexpr (Context::kHasExtra) {
    word[i++] = __int_as_float(part.arg_s);
    word[i++] = __int_as_float(part.arg_t);
  }
  pack_packet(word, packet);
}

template <class Context>
__device__ __forceinline__ Partial unpack(const Context& row, const Packets& packets, unsigned which) {
  float word[WordsOf<Context>::kCount];
  read_packet<WordsOf<Context>::kCount>(packets, which, word);
  Partial part;
  part.max_s = word[0], part.max_t = word[1];
  part.anchor_s = anchor_of(part.max_s, row.call.log2_scale_s);
  part.anchor_t = anchor_of(part.max_t, row.call.log2_scale_t);
  part.shift_s = shift_of(part.max_s, row.call.log2_scale_s);
  part.shift_t = shift_of(part.max_t, row.call.log2_scale_t);
  int i = WordsOf<Context>::kMaxima;
  for_each_sum<Context>(part, [&](float& x) { x = word[i++]; });
  if constexpr (Context::kHasExtra) {
    part.arg_s = __float_as_int(word[i++]);
    part.arg_t = __float_as_int(word[i++]);
  }
  return part;
}

}  // namespace cuda
}  // namespace fastkd
