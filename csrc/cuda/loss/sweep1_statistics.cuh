// The first sweep: each thread sums over its columns, relative to large logits that it has met; then the sums
// of all threads that share the row are combined. One pass finds maxima and sums together, because a pass for
// the maxima alone would read the logits once more.
#pragma once

#include "maxima.cuh"
#include "streams.cuh"

namespace fastkd {
namespace cuda {

// The row's sums, which sweep 1 finds, relative to the shifts of RowContext.
struct Statistics {
  float max_s, max_t;
  float z_s, z_t;
  float z_ce_others;  // student's normaliser at temperature 1, without the label
  float stream[kMaxStreams];
  float cross_shift;
  float logit_sum;
  float label_s, label_t;  // the label's logits, -inf where the call does not use them
};

// The sums that only metrics need. Only the first thread reads and writes them, in shared memory, where they
// need no registers during the sweeps.
struct Moments {
  float moment_s, moment_t;
  int64_t arg_s, arg_t;
};

// Sums in pairs, so that the additions of one level do not depend on each other.
template <int kGroup>
__device__ __forceinline__ float sum_of(const float (&x)[kGroup]) {
  float pair[kGroup / 2];
#pragma unroll
  for (int k = 0; k < kGroup / 2; ++k) pair[k] = x[2 * k] + x[2 * k + 1];
  if constexpr (kGroup == 2) {
    return pair[0];
  } else {
    return sum_of(pair);
  }
}

template <int kGroup>
__device__ __forceinline__ int first_of(const float (&x)[kGroup], float value, int column) {
  int found = column;
#pragma unroll
  for (int k = kGroup - 1; k >= 0; --k) {
    if (x[k] == value) found = column + k;
  }
  return found;
}

template <class Context>
__device__ __forceinline__ void add_moments(const Context& row, const float (&s)[Context::kGroup],
                                            const float (&t)[Context::kGroup], Partial& part) {
#pragma unroll
  for (int k = 0; k < Context::kGroup; ++k) {
    const float xs = fmaf(s[k], row.call.log2_scale_s, -part.shift_s);
    part.moment_s += times(exp2_fast(xs), xs);
    if constexpr (Context::kTeacher) {
      const float xt = fmaf(t[k], row.call.log2_scale_t, -part.shift_t);
      part.moment_t += times(exp2_fast(xt), xt);
    }
  }
}

// Adds to the plain sum of the student's logits.
template <class Context>
__device__ __forceinline__ void add_logits(const Context& row, int column, const float (&s)[Context::kGroup],
                                           Partial& part) {
  if (!row.call.sum_logits) return;
#pragma unroll
  for (int k = 0; k < Context::kGroup; ++k) {
    if (exists(column + k, row.call.vocab) && !(Context::kSplits && column + k == row.label_column))
      part.logit_sum += s[k];
  }
}

// Adds to the normaliser at temperature 1, except for the label's exponential. Overwrites the logits and
// exponentials that it is given.
template <class Context>
__device__ __forceinline__ void add_ce_exponentials(const Context& row, int column,
                                                    float (&s)[Context::kGroup], float (&e)[Context::kGroup],
                                                    Partial& part) {
  constexpr int kGroup = Context::kGroup;
  if (row.call.ce_softmax == CeSoftmax::kNone) return;
  if (row.has_label(column)) {
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      if (column + k == row.label_column) s[k] = -INFINITY, e[k] = 0;
    }
  }
  float ce[kGroup];
  row.ce_exponentials(s, e, row.ce_shift_of(part.anchor_s, part.shift_s), ce);
  part.z_ce_others += sum_of(ce);
}

template <class Context>
__device__ __forceinline__ void accumulate(const Context& row, int column, Partial& part,
                                           Maxima<Context>& maxima) {
  constexpr int kGroup = Context::kGroup;
  const Call& call = row.call;
  float s[kGroup], t[kGroup];
  const typename Context::Words words = row.read(column);
  row.convert(words, column, s, t);
  const float before_s = part.max_s, before_t = part.max_t;
  maxima.meet(row, s, t, words, part);
  if (Context::kHasExtra && call.metrics) {
    if (part.max_s > before_s) part.arg_s = first_of(s, part.max_s, column);
    if (part.max_t > before_t) part.arg_t = first_of(t, part.max_t, column);
  }
  if (maxima.exceed(row, part)) {
    maxima.settle(row, part);
    raise(row, part);
    maxima.follow(row, part);
  }
  // Before the other sums: after them the compiler would keep their exponentials for it, and spill.
  if (Context::kHasExtra && call.metrics) add_moments(row, s, t, part);
  if constexpr (!Context::kPacksMaxima) add_logits(row, column, s, part);
  float e_s[kGroup];
  Streams<Context> streams(part);
#pragma unroll
  for (int k = 0; k < kGroup; ++k) {
    if constexpr (Context::kTeacher) {
      const Entry<float> e = row.raw_entry(s[k], t[k], part.shift_s, part.shift_t);
      e_s[k] = e.es;
      part.z_t += e.et;
      streams.add(row, e, s[k], t[k]);
    } else {
      e_s[k] = exp2_fast(fmaf(s[k], call.log2_scale_s, -part.shift_s));
    }
    part.z_s += e_s[k];  // in the same order as the streams, so that equal rows have equal sums
  }
  streams.finish(row, s, t, part);
  // Behind the sums, where maxima are packed: before them the compiler would convert the logits in two
  // branches.
  if constexpr (Context::kPacksMaxima) add_logits(row, column, s, part);
  add_ce_exponentials(row, column, s, e_s, part);
}

// Adds the label's logits to the sums of one thread, of those that share the row: it is before the exchange
// of the packets, after which the gradient may overwrite the logits.
template <class Context>
__device__ __forceinline__ void add_label(const Context& row, Partial& part) {
  if (threadIdx.x != 0 || !row.has_label_logit()) return;
  part.label_s = row.student[row.label_column];
  if constexpr (Context::kSplits) part.label_t = row.teacher[row.label_column];
}

// Sends the sums of each warp to all warps that share the row. Sets the row maxima.
template <class Context>
__device__ __forceinline__ Packets send_partial(const Context& row, Partial& part, float (&max)[2]) {
  add_label(row, part);
  max[0] = part.max_s, max[1] = part.max_t;
  reduce_lanes<Max>(max);
  if (Context::kHasExtra && row.call.metrics) {
    int arg[2] = {part.max_s == max[0] ? part.arg_s : INT_MAX, part.max_t == max[1] ? part.arg_t : INT_MAX};
    reduce_lanes<First>(arg);
    part.arg_s = arg[0], part.arg_t = arg[1];
  }
  part.max_s = max[0], part.max_t = max[1];
  raise(row, part);
  add_lanes<Context>(part);
  Streams<Context>::scale(row, part);
  uint4 mine[kPacketVectors<WordsOf<Context>::kCount>];
  pack<Context>(part, mine);
  const Packets packets = row.place.exchange(mine);
  max[0] = max[1] = -INFINITY;
#pragma unroll 1
  for (unsigned i = threadIdx.x % kWarp; i < packets.count; i += kWarp) {
    float one[2];
    read_packet<WordsOf<Context>::kCount>(packets, i, one);
    max[0] = fmaxf(max[0], one[0]), max[1] = fmaxf(max[1], one[1]);
  }
  reduce_lanes<Max>(max);
  return packets;
}

// Adds up the packets. `max`: the row maxima.
template <class Context>
__device__ __forceinline__ Statistics combine(Context& row, const Packets& packets, const float (&max)[2],
                                              Moments* moments) {
  row.choose_shifts(max[0], max[1]);
  Partial total;
  int arg[2] = {INT_MAX, INT_MAX};
#pragma unroll 1
  for (unsigned i = threadIdx.x % kWarp; i < packets.count; i += kWarp) {
    Partial part = unpack(row, packets, i);
    if (part.max_s == max[0]) arg[0] = min(arg[0], part.arg_s);
    if (part.max_t == max[1]) arg[1] = min(arg[1], part.arg_t);
    part.max_s = max[0], part.max_t = max[1];
    rescale(row, part, row.shift_s, row.shift_t);
    float sum[WordsOf<Context>::kSums];
    int k = 0;
    for_each_sum<Context>(part, [&](float x) { sum[k++] = x; });
    k = 0;
    for_each_sum<Context>(total, [&](float& x) { x += sum[k++]; });
  }
  add_lanes<Context>(total);
  Statistics found;
  found.max_s = anchor_of(max[0], row.call.log2_scale_s);
  found.max_t = anchor_of(max[1], row.call.log2_scale_t);
  found.z_s = total.z_s;
  found.z_t = total.z_t;
  found.z_ce_others = total.z_ce_others;
  found.logit_sum = total.logit_sum;
#pragma unroll
  for (int k = 0; k < kMaxStreams; ++k) found.stream[k] = total.stream[k];
  found.cross_shift = 0;
  const bool has_label = row.label_column >= 0;
  found.label_s = has_label ? total.label_s : -INFINITY;
  found.label_t = has_label && Context::kSplits ? total.label_t : -INFINITY;
  if (row.lowered) found.label_s -= origin().s, found.label_t -= origin().t;
  if (Context::kHasExtra && row.call.metrics) {
    reduce_lanes<First>(arg);
    if (threadIdx.x == 0) *moments = {total.moment_s, total.moment_t, arg[0], arg[1]};
  }
  return found;
}

// Computes the sum of p^a q^b once more, relative to its largest term, for rows so far apart that its terms
// over- or underflow.
template <class Context>
__device__ __forceinline__ void find_distant_cross(const Context& row, Statistics& found) {
  constexpr int kGroup = Context::kGroup;
  const float a = row.call.teacher_power[0], b = row.call.total_power[0] - a;
  float top[1] = {-INFINITY};
#pragma unroll 1
  for (int g = row.begin + threadIdx.x; g < row.end; g += blockDim.x) {
    float s[kGroup], t[kGroup];
    row.load(row.first + g * kGroup, s, t);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      const float xs = fmaf(s[k], row.call.log2_scale_s, -row.shift_s);
      const float xt = fmaf(t[k], row.call.log2_scale_t, -row.shift_t);
      // Entries that are -inf on both sides are masked.
      if (fmaxf(xs, xt) != -INFINITY) top[0] = fmaxf(top[0], a * xt + b * xs);
    }
  }
  reduce_row<Max>(row.place, top);
  if (fabsf(top[0]) == INFINITY) {
    // There is no term at all, or an infinite one (unless the row contains NaN, as its other sums then do).
    if (top[0] > 0) found.stream[0] = top[0] * found.z_s * found.z_t;
    return;
  }
  float sum[1] = {0};
#pragma unroll 1
  for (int g = row.begin + threadIdx.x; g < row.end; g += blockDim.x) {
    float s[kGroup], t[kGroup], stream[kMaxStreams] = {0, 0, 0};
    row.load(row.first + g * kGroup, s, t);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      row.functor.stream(row.raw_entry(s[k], t[k], row.shift_s, row.shift_t), top[0], stream);
    }
    sum[0] += stream[0];
  }
  reduce_row<Sum>(row.place, sum);
  found.stream[0] = sum[0];
  found.cross_shift = top[0];
}

// Runs the sweep: returns this thread's sums.
template <class Context>
__device__ __forceinline__ Partial sweep(const Context& row) {
  Partial part;
  Maxima<Context> maxima;
  constexpr int kGroup = Context::kGroup;
  const int step = static_cast<int>(blockDim.x) * kGroup;
  int column = row.first + (row.begin + static_cast<int>(threadIdx.x)) * kGroup;
  for (int stage = 0; stage < row.place.stages(); ++stage) {
    const int stop = row.first + row.place.await(stage, row.begin, row.end) * kGroup;
#pragma unroll 1
    for (; column < stop; column += step) accumulate(row, column, part, maxima);
  }
  maxima.settle(row, part);
  return part;
}

// Runs the sweep, and once more relative to the row maxima where these are extreme. Returns the packets of
// all warps, and sets the row maxima.
template <class Context>
__device__ __forceinline__ Packets send_statistics(Context& row, float (&max)[2]) {
  Partial part = sweep(row);
  const Packets packets = send_partial(row, part, max);
  if (!row.is_far(max[0], max[1])) return packets;
  row.lower(max[0], max[1]);  // has a barrier
  row.place.release();
  part = sweep(row);
  return send_partial(row, part, max);
}

// Returns the row's statistics, in all threads.
template <class Context>
__device__ __forceinline__ Statistics find_statistics(Context& row, Moments* moments) {
  float max[2];
  const Packets packets = send_statistics(row, max);
  Statistics found = combine(row, packets, max, moments);
  if constexpr (Context::Div::kCross) {
    if (!(found.stream[0] > 1e-18f && found.stream[0] < 1e30f)) find_distant_cross(row, found);
  }
  return found;
}

}  // namespace cuda
}  // namespace fastkd
