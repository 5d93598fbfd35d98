// The first sweep: each thread sums over its columns, relative to large logits that it has met; then the sums
// of all threads that share the row are combined. One pass finds maxima and sums together, because a pass for
// the maxima alone would read the logits once more.
#pragma once

#include "../memory/reduce.cuh"
#include "row.cuh"

namespace fastkd {
namespace cuda {

// The sums of one thread.
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
  float moment_s = 0, moment_t = 0;       // sums of exponentials times their exponents of 2
  int arg_s = 0, arg_t = 0;               // columns of the largest logits
};

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

// Makes the exponentials relative to the largest logits so far.
template <class Context>
__device__ __forceinline__ void raise(const Context& row, Partial& part) {
  const Call& call = row.call;
  const float to_s = shift_of(part.max_s, call.log2_scale_s);
  const float to_t = shift_of(part.max_t, call.log2_scale_t);
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
__device__ __forceinline__ void accumulate(const Context& row, int column, Partial& part) {
  constexpr int kGroup = Context::kGroup;
  const Call& call = row.call;
  float s[kGroup], t[kGroup];
  row.load(column, s, t);
  const float before_s = part.max_s, before_t = part.max_t;
#pragma unroll
  for (int k = 0; k < kGroup; ++k) {
    part.max_s = fmaxf(part.max_s, s[k]);
    if constexpr (Context::kTeacher) part.max_t = fmaxf(part.max_t, t[k]);
  }
  if (Context::kHasExtra && call.metrics) {
    if (part.max_s > before_s) part.arg_s = first_of(s, part.max_s, column);
    if (part.max_t > before_t) part.arg_t = first_of(t, part.max_t, column);
  }
  if (part.max_s > part.anchor_s + call.raise_margin || part.max_t > part.anchor_t + call.raise_margin) {
    raise(row, part);
  }
  // Before the other sums: after them the compiler would keep their exponentials for it, and spill.
  if (Context::kHasExtra && call.metrics) add_moments(row, s, t, part);
  if (call.sum_logits) {
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      if (exists(column + k, call.vocab) && !(Context::kSplits && column + k == row.label_column))
        part.logit_sum += s[k];
    }
  }
  float e_s[kGroup];
#pragma unroll
  for (int k = 0; k < kGroup; ++k) {
    if constexpr (Context::kTeacher) {
      const Entry<float> e = row.raw_entry(s[k], t[k], part.shift_s, part.shift_t);
      e_s[k] = e.es;
      part.z_t += e.et;
      row.functor.stream(e, 0.0f, part.stream);
    } else {
      e_s[k] = exp2_fast(fmaf(s[k], call.log2_scale_s, -part.shift_s));
    }
    part.z_s += e_s[k];  // in the same order as the streams, so that equal rows have equal sums
  }
  add_ce_exponentials(row, column, s, e_s, part);
}

// Combines the sums of all threads that share the row. `max`: the row maxima.
template <class Context>
__device__ __forceinline__ Statistics combine(Context& row, const Partial& part, const float (&max)[2],
                                              RowIndex index, Moments* moments) {
  constexpr int kStreams = Context::Div::kStreams;
  Statistics found;
  // Read before the barriers: after them the gradient may overwrite the logit.
  found.label_s = row.label_logit(row.call.student, index);
  found.label_t = Context::kSplits ? row.label_logit(row.call.teacher, index) : -INFINITY;
  if (row.lowered) found.label_s -= origin().s, found.label_t -= origin().t;
  found.max_s = anchor_of(max[0], row.call.log2_scale_s);
  found.max_t = anchor_of(max[1], row.call.log2_scale_t);
  row.choose_shifts(max[0], max[1]);

  const float by_s = change_of(part.anchor_s, part.shift_s, row.shift_s);
  const float by_t = change_of(part.anchor_t, part.shift_t, row.shift_t);
  const float factor_s = exp2_fast(by_s);
  const float factor_ce =
      row.ce_factor(part.anchor_s, factor_s, row.ce_shift_of(part.anchor_s, part.shift_s), row.shift_ce);
  float stream[kMaxStreams];
#pragma unroll
  for (int k = 0; k < kStreams; ++k) stream[k] = part.stream[k];
  rescale_streams<typename Context::Div>(row.call, stream, by_s, by_t);
  float sum[4 + kStreams] = {part.z_s * factor_s, part.z_t * exp2_fast(by_t), part.z_ce_others * factor_ce,
                             part.logit_sum};
#pragma unroll
  for (int k = 0; k < kStreams; ++k) sum[4 + k] = stream[k];
  row.place.template reduce<Sum>(sum);
  found.z_s = sum[0];
  found.z_t = sum[1];
  found.z_ce_others = sum[2];
  found.logit_sum = sum[3];
#pragma unroll
  for (int k = 0; k < kMaxStreams; ++k) found.stream[k] = k < kStreams ? sum[4 + k] : 0.0f;
  found.cross_shift = 0;

  if (Context::kHasExtra && row.call.metrics) {
    float moment[2] = {rescaled_moment(part.moment_s, part.z_s, by_s),
                       rescaled_moment(part.moment_t, part.z_t, by_t)};
    row.place.template reduce<Sum>(moment);
    int arg[2] = {part.max_s == max[0] ? part.arg_s : INT_MAX, part.max_t == max[1] ? part.arg_t : INT_MAX};
    row.place.template reduce<First>(arg);
    if (threadIdx.x == 0) *moments = {moment[0], moment[1], arg[0], arg[1]};
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
  row.place.template reduce<Max>(top);
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
  row.place.template reduce<Sum>(sum);
  found.stream[0] = sum[0];
  found.cross_shift = top[0];
}

// Runs the sweep: returns this thread's sums and sets `max` to the row maxima.
template <class Context>
__device__ __forceinline__ Partial sweep(const Context& row, float (&max)[2]) {
  Partial part;
  int g = row.begin + threadIdx.x;
  for (int stage = 0; stage < row.place.stages(); ++stage) {
    const int end = row.place.await(stage, row.begin, row.end);
#pragma unroll 1
    for (; g < end; g += blockDim.x) accumulate(row, row.first + g * Context::kGroup, part);
  }
  max[0] = part.max_s, max[1] = part.max_t;
  row.place.template reduce<Max>(max);
  return part;
}

// Returns the row's statistics, after a second pass relative to the row maxima where these are extreme.
template <class Context>
__device__ __forceinline__ Statistics find_statistics(Context& row, RowIndex index, Moments* moments) {
  float max[2];
  Partial part = sweep(row, max);
  if (row.is_far(max[0], max[1])) {
    row.lower(max[0], max[1]);
    part = sweep(row, max);
  }
  Statistics found = combine(row, part, max, index, moments);
  if constexpr (Context::Div::kCross) {
    if (!(found.stream[0] > 1e-18f && found.stream[0] < 1e30f)) find_distant_cross(row, found);
  }
  return found;
}

}  // namespace cuda
}  // namespace fastkd
