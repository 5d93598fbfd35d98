// What the sweeps have found of a row so far.
//
// Exponentials are powers of two: x = logit * log2(e) / T - shift. The shift is an integer near the row's
// maximum: that of the columns which asked for it. With equal temperatures and maxima near each other both
// rows take the same one: equal logits then give equal exponentials, and q - p is right to the last digits
// however alike the models are.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "row_setup.h"

namespace fastkd {
inline namespace FASTKD_ISA {

template <class R>
constexpr R kLowest = -std::numeric_limits<R>::infinity();

template <class R>
struct Shifts {
  R s = 0, t = 0, one = 0;  // of the student, of the teacher, of the student at temperature 1

  bool operator==(const Shifts& x) const { return s == x.s && t == x.t && one == x.one; }
};

template <class R>
struct RowState {
  int64_t label = -1;  // -1: none, or in another shard
  R label_s = kLowest<R>, label_t = kLowest<R>;
  R max_s = kLowest<R>, max_t = kLowest<R>;
  int64_t arg_s = 0, arg_t = 0;
  double columns = 0;
  double logit_sum = 0;
  // What ratios are relative to: that of the largest logits, so that logits which differ by a constant have
  // ratios near 0. Once as ratios have it, and once, in nats too, as the exponentials do, whose scales are
  // rounded in another way.
  R base = 0;
  double base_in_exponents = 0;
  // Relative to the shifts, the streams to the base:
  Shifts<R> shift;
  double z_s = 0, z_t = 0, z_1 = 0, moment_s = 0, moment_t = 0;
  double stream[kMaxStreams] = {0, 0, 0}, cross_shift = 0;
};

// -inf everywhere so far: any finite number will do.
template <class R>
inline R finite(R x) {
  return x == kLowest<R> ? R(0) : x;
}

// The exponent of 2 of a largest logit, rounded. Where that is -inf, or so low that it becomes -inf here, any
// finite shift will do, and keeps -inf - shift from being NaN.
template <class R>
inline R exponent_of(R max, R to_exponent) {
  const R exponent = std::nearbyint(max * to_exponent);
  return exponent == kLowest<R> ? R(0) : exponent;
}

// The shifts that go with the largest logits.
template <class V, class Div, class R>
inline Shifts<R> shifts_for(const RowSetup<V, Div>& setup, const RowState<R>& row) {
  Shifts<R> to;
  to.s = exponent_of(row.max_s, R(setup.to_exponent_s));
  to.t = exponent_of(row.max_t, R(setup.to_exponent_t));
  if (setup.same_temperature && setup.kTeacher && std::fabs(to.s - to.t) < 16)
    to.s = to.t = std::max(to.s, to.t);
  to.one =
      setup.power == 0 ? exponent_of(row.max_s, R(setup.to_exponent_1)) : exponent_of(to.s, R(setup.power));
  return to;
}

inline void rescale(double& sum, double by) {
  if (sum != 0) sum *= std::exp2(by);
}

// All sums to shifts that are smaller by these.
template <class Div, class R>
inline void move_sums(const Div& div, RowState<R>& row, double by_s, double by_t, double by_1) {
  rescale(row.z_s, by_s);
  rescale(row.z_t, by_t);
  rescale(row.z_1, by_1);
  rescale(row.moment_s, by_s);
  rescale(row.moment_t, by_t);
  for (int k = 0; k < Div::kStreams; ++k) {
    rescale(row.stream[k], div.teacher_power(k) * by_t + div.student_power(k) * by_s);
  }
}

// The streams' entries less `by`, in nats as exponentials have it.
template <class Div, class R>
inline void lower_ratios(const Div& div, RowState<R>& row, double by) {
  if (Div::kCross || by == 0) return;
  for (int k = 0; k < Div::kStreams; ++k) {
    row.stream[k] -= times(div.teacher_power(k) == 1 ? row.z_t : row.z_s, by);
  }
}

// The base that goes with the largest logits.
template <class V, class Div, class R>
inline void move_base(const RowSetup<V, Div>& setup, RowState<R>& row) {
  const double s = finite(row.max_s), t = finite(row.max_t), before = row.base_in_exponents;
  const double ratio = (t * setup.temperatures - s) * setup.to_nats;
  row.base = static_cast<R>(ratio);
  row.base_in_exponents = kLn2 * (t * setup.to_exponent_t - s * setup.to_exponent_s) + (row.base - ratio);
  lower_ratios(setup.div, row, row.base_in_exponents - before);
}

template <class V, class Div, class R>
inline void move_to(const RowSetup<V, Div>& setup, RowState<R>& row, const Shifts<R>& to) {
  move_sums(setup.div, row, double(row.shift.s) - to.s, double(row.shift.t) - to.t,
            double(row.shift.one) - to.one);
  row.shift = to;
  if constexpr (RowSetup<V, Div>::kTeacher) move_base(setup, row);
}

// Where the label is the only entry, the others are none and have no share.
template <class Div>
inline double reciprocal(double z) {
  return Div::kSplitsLabel && z == 0 ? 0 : 1 / z;
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
