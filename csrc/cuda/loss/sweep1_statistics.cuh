// The first sweep: each thread sums over its columns, relative to large logits that it has met; then the sums
// of all threads that share the row are combined.
#pragma once

#include "../memory/reduce.cuh"
#include "row.cuh"

namespace fastkd {
namespace cuda {

// The sums of one thread.
struct Partial {
  float s_max = -INFINITY, t_max = -INFINITY;
  // The exponentials are relative to these: the largest logits except for a margin, so that most groups with
  // a larger one need no rescaling.
  float s_anchor = -INFINITY, t_anchor = -INFINITY;
  float s_shift = 0, t_shift = 0;
  float s_sum = 0, t_sum = 0;             // sums of exponentials at the divergence's temperatures
  float s_soft = 0;                       // sum of the student's at temperature 1, without the label's
  float stream[kMaxStreams] = {0, 0, 0};  // the divergence's streams
  float logits = 0;                       // plain sum of the student's logits
  float s_moment = 0, t_moment = 0;       // sums of exponentials times their exponents of 2
  int s_arg = 0, t_arg = 0;               // columns of the largest logits
};

// The sums of the row, relative to the shifts in RowStatistics.
struct Totals {
  float s_max, t_max;
  float s_sum, t_sum;
  float others;  // student's sum at temperature 1, without the label
  float stream[kMaxStreams];
  float cross_shift;
  float logits;
  float s_label, t_label;  // the label's logits, -inf where the call does not use them
};

// The sums that only metrics need. Only the first thread reads and writes them, in shared memory, where they
// need no registers during the sweeps.
struct Moments {
  float s_moment, t_moment;
  int64_t s_arg, t_arg;
};

// Rescales a divergence's streams when the teacher's exponentials are multiplied by 2^by_t and the student's
// by 2^by_s. Where the two are equal, so are the factors, to the bit.
template <class D>
__device__ __forceinline__ void rescale_streams(const DenseArgs& args, float (&stream)[kMaxStreams],
                                                float by_s, float by_t) {
#pragma unroll
  for (int k = 0; k < D::kStreams; ++k) {
    const float by = fmaf(args.teacher_power[k], by_t - by_s, args.total_power[k] * by_s);
    if constexpr (D::kCross) {
      stream[k] = stream[k] == 0 ? 0.0f : stream[k] * exp2_fast(by);
    } else {
      // Each stream depends on the exponentials of one side only. A factor that vanishes removes an infinite
      // ratio with it.
      stream[k] = times(exp2_fast(args.teacher_power[k] != 0 ? by_t : by_s), stream[k]);
    }
  }
}

// Rescales a sum of exponentials times exponents, whose shift changes with that of the exponentials.
__device__ __forceinline__ float rescaled_moment(float moment, float sum, float by) {
  return times(exp2_fast(by), fmaf(by, sum, moment));
}

// Makes the exponentials relative to the largest logits so far.
template <class AnyRow>
__device__ __forceinline__ void raise(const AnyRow& r, Partial& part) {
  const DenseArgs& args = r.args;
  const float s_to = shift_of(part.s_max, args.student_to_log2);
  const float t_to = shift_of(part.t_max, args.teacher_to_log2);
  const float by_s = change_of(part.s_anchor, part.s_shift, s_to);
  const float by_t = change_of(part.t_anchor, part.t_shift, t_to);
  const float s_factor = exp2_fast(by_s);
  part.s_soft *= r.soft_factor(part.s_anchor, s_factor, r.soft_shift_of(part.s_anchor, part.s_shift),
                               r.soft_shift_of(part.s_max, s_to));
  rescale_streams<typename AnyRow::Div>(args, part.stream, by_s, by_t);
  if (AnyRow::kHasExtra && args.metrics) {
    part.s_moment = rescaled_moment(part.s_moment, part.s_sum, by_s);
    part.t_moment = rescaled_moment(part.t_moment, part.t_sum, by_t);
  }
  part.s_sum *= s_factor;
  part.t_sum *= exp2_fast(by_t);
  part.s_anchor = anchor_of(part.s_max, args.student_to_log2);
  part.t_anchor = anchor_of(part.t_max, args.teacher_to_log2);
  part.s_shift = s_to;
  part.t_shift = t_to;
}

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

template <class AnyRow>
__device__ __forceinline__ void add_moments(const AnyRow& r, const float (&s)[AnyRow::kGroup],
                                            const float (&t)[AnyRow::kGroup], Partial& part) {
#pragma unroll
  for (int k = 0; k < AnyRow::kGroup; ++k) {
    const float xs = fmaf(s[k], r.args.student_to_log2, -part.s_shift);
    part.s_moment += times(exp2_fast(xs), xs);
    if constexpr (AnyRow::kTeacher) {
      const float xt = fmaf(t[k], r.args.teacher_to_log2, -part.t_shift);
      part.t_moment += times(exp2_fast(xt), xt);
    }
  }
}

// Adds to the sum at temperature 1, without the label's exponential. Overwrites the logits and exponentials
// that it is given.
template <class AnyRow>
__device__ __forceinline__ void add_soft(const AnyRow& r, int column, float (&s)[AnyRow::kGroup],
                                         float (&e)[AnyRow::kGroup], Partial& part) {
  constexpr int kGroup = AnyRow::kGroup;
  if (r.args.soft == Soft::kNone) return;
  if (r.has_label(column)) {
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      if (column + k == r.hot) s[k] = -INFINITY, e[k] = 0;
    }
  }
  float soft[kGroup];
  r.soft_exponentials(s, e, r.soft_shift_of(part.s_anchor, part.s_shift), soft);
  part.s_soft += sum_of(soft);
}

template <class AnyRow>
__device__ __forceinline__ void accumulate(const AnyRow& r, int column, Partial& part) {
  constexpr int kGroup = AnyRow::kGroup;
  const DenseArgs& args = r.args;
  float s[kGroup], t[kGroup];
  r.load(column, s, t);
  const float s_before = part.s_max, t_before = part.t_max;
#pragma unroll
  for (int k = 0; k < kGroup; ++k) {
    part.s_max = fmaxf(part.s_max, s[k]);
    if constexpr (AnyRow::kTeacher) part.t_max = fmaxf(part.t_max, t[k]);
  }
  if (AnyRow::kHasExtra && args.metrics) {
    if (part.s_max > s_before) part.s_arg = first_of(s, part.s_max, column);
    if (part.t_max > t_before) part.t_arg = first_of(t, part.t_max, column);
  }
  if (part.s_max > part.s_anchor + args.raise_margin || part.t_max > part.t_anchor + args.raise_margin) {
    raise(r, part);
  }
  // Before the other sums: after them the compiler would keep their exponentials for it, and spill.
  if (AnyRow::kHasExtra && args.metrics) add_moments(r, s, t, part);
  if (args.sum_logits) {
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      if (exists(column + k, args.vocab) && !(AnyRow::kSplits && column + k == r.hot)) part.logits += s[k];
    }
  }
  float e_s[kGroup];
#pragma unroll
  for (int k = 0; k < kGroup; ++k) {
    if constexpr (AnyRow::kTeacher) {
      const Entry<float> e = r.raw_entry(s[k], t[k], part.s_shift, part.t_shift);
      e_s[k] = e.es;
      part.t_sum += e.et;
      r.divergence.stream(e, 0.0f, part.stream);
    } else {
      e_s[k] = exp2_fast(fmaf(s[k], args.student_to_log2, -part.s_shift));
    }
    part.s_sum += e_s[k];  // in the same order as the streams, so that equal rows have equal sums
  }
  add_soft(r, column, s, e_s, part);
}

// Combines the sums of all threads that share the row. `max`: the row maxima.
template <class AnyRow>
__device__ __forceinline__ Totals combine(AnyRow& r, const Partial& part, const float (&max)[2],
                                          int64_t index, Moments* moments) {
  constexpr int kStreams = AnyRow::Div::kStreams;
  Totals found;
  // Read before the barriers: after them the gradient may overwrite the logit.
  found.s_label = r.label_logit(r.args.student, index);
  found.t_label = AnyRow::kSplits ? r.label_logit(r.args.teacher, index) : -INFINITY;
  if (r.row.lowered) found.s_label -= origin().s, found.t_label -= origin().t;
  found.s_max = anchor_of(max[0], r.args.student_to_log2);
  found.t_max = anchor_of(max[1], r.args.teacher_to_log2);
  r.choose_shifts(max[0], max[1]);

  const float by_s = change_of(part.s_anchor, part.s_shift, r.row.s_shift);
  const float by_t = change_of(part.t_anchor, part.t_shift, r.row.t_shift);
  const float s_factor = exp2_fast(by_s);
  const float soft =
      r.soft_factor(part.s_anchor, s_factor, r.soft_shift_of(part.s_anchor, part.s_shift), r.row.soft_shift);
  float stream[kMaxStreams];
#pragma unroll
  for (int k = 0; k < kStreams; ++k) stream[k] = part.stream[k];
  rescale_streams<typename AnyRow::Div>(r.args, stream, by_s, by_t);
  float sum[4 + kStreams] = {part.s_sum * s_factor, part.t_sum * exp2_fast(by_t), part.s_soft * soft,
                             part.logits};
#pragma unroll
  for (int k = 0; k < kStreams; ++k) sum[4 + k] = stream[k];
  r.place.template reduce<Sum>(sum);
  found.s_sum = sum[0];
  found.t_sum = sum[1];
  found.others = sum[2];
  found.logits = sum[3];
#pragma unroll
  for (int k = 0; k < kMaxStreams; ++k) found.stream[k] = k < kStreams ? sum[4 + k] : 0.0f;
  found.cross_shift = 0;

  if (AnyRow::kHasExtra && r.args.metrics) {
    float moment[2] = {rescaled_moment(part.s_moment, part.s_sum, by_s),
                       rescaled_moment(part.t_moment, part.t_sum, by_t)};
    r.place.template reduce<Sum>(moment);
    int arg[2] = {part.s_max == max[0] ? part.s_arg : INT_MAX, part.t_max == max[1] ? part.t_arg : INT_MAX};
    r.place.template reduce<First>(arg);
    if (threadIdx.x == 0) *moments = {moment[0], moment[1], arg[0], arg[1]};
  }
  return found;
}

// Computes the sum of p^a q^b once more, relative to its largest term, for rows so far apart that its terms
// over- or underflow.
template <class AnyRow>
__device__ __forceinline__ void find_distant_cross(const AnyRow& r, Totals& found) {
  constexpr int kGroup = AnyRow::kGroup;
  const float a = r.args.teacher_power[0], b = r.args.total_power[0] - a;
  float top[1] = {-INFINITY};
#pragma unroll 1
  for (int g = r.begin + threadIdx.x; g < r.end; g += blockDim.x) {
    float s[kGroup], t[kGroup];
    r.load(r.first + g * kGroup, s, t);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      const float xs = fmaf(s[k], r.args.student_to_log2, -r.row.s_shift);
      const float xt = fmaf(t[k], r.args.teacher_to_log2, -r.row.t_shift);
      // Entries that are -inf on both sides are masked.
      if (fmaxf(xs, xt) != -INFINITY) top[0] = fmaxf(top[0], a * xt + b * xs);
    }
  }
  r.place.template reduce<Max>(top);
  if (fabsf(top[0]) == INFINITY) {
    // There is no term at all, or an infinite one (unless the row contains NaN, as its other sums then do).
    if (top[0] > 0) found.stream[0] = top[0] * found.s_sum * found.t_sum;
    return;
  }
  float sum[1] = {0};
#pragma unroll 1
  for (int g = r.begin + threadIdx.x; g < r.end; g += blockDim.x) {
    float s[kGroup], t[kGroup], stream[kMaxStreams] = {0, 0, 0};
    r.load(r.first + g * kGroup, s, t);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      r.divergence.stream(r.raw_entry(s[k], t[k], r.row.s_shift, r.row.t_shift), top[0], stream);
    }
    sum[0] += stream[0];
  }
  r.place.template reduce<Sum>(sum);
  found.stream[0] = sum[0];
  found.cross_shift = top[0];
}

// Returns this thread's sums and sets `max` to the row maxima.
template <class AnyRow>
__device__ __forceinline__ Partial sweep(const AnyRow& r, float (&max)[2]) {
  Partial part;
  int g = r.begin + threadIdx.x;
  for (int stage = 0; stage < r.place.stages(); ++stage) {
    const int end = r.place.await(stage, r.begin, r.end);
#pragma unroll 1
    for (; g < end; g += blockDim.x) accumulate(r, r.first + g * AnyRow::kGroup, part);
  }
  max[0] = part.s_max, max[1] = part.t_max;
  r.place.template reduce<Max>(max);
  return part;
}

template <class AnyRow>
__device__ __forceinline__ Totals find_statistics(AnyRow& r, int64_t index, Moments* moments) {
  float max[2];
  Partial part = sweep(r, max);
  if (r.is_far(max[0], max[1])) {
    r.lower(max[0], max[1]);
    part = sweep(r, max);
  }
  Totals found = combine(r, part, max, index, moments);
  if constexpr (AnyRow::Div::kCross) {
    if (!(found.stream[0] > 1e-18f && found.stream[0] < 1e30f)) find_distant_cross(r, found);
  }
  return found;
}

}  // namespace cuda
}  // namespace fastkd
