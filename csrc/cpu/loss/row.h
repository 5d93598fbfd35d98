// The state of a row: the sums that the sweeps have collected so far.
//
// Exponentials are powers of two, with exponents x = logit * log2(e) / T - shift. The shift is an integer
// near the row maximum: near the maximum of the columns that made the kernel change it. With equal
// temperatures and maxima near each other both rows share one shift. Equal logits then give equal
// exponentials, and q - p is right to the last digits however similar the models are.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "call.h"

namespace fastkd {
inline namespace FASTKD_ISA {

template <class R>
constexpr R kLowest = -std::numeric_limits<R>::infinity();

template <class R>
struct Shifts {
  R s = 0, t = 0, one = 0;  // for the student, the teacher, the student at temperature 1
  // Log-ratios are relative to the log-ratio of the largest logits, so that logits which differ by a constant
  // have ratios near 0. That number is stored twice, in nats: `ratio` as Entry::ratio uses it, and `base` as
  // the exponentials imply it, whose scales are rounded differently.
  R ratio = 0;
  double base = 0;

  bool operator==(const Shifts& x) const { return s == x.s && t == x.t && one == x.one && base == x.base; }
};

template <class R>
struct RowState {
  int64_t label = -1;  // -1: there is none, or it belongs to another shard
  R label_s = kLowest<R>, label_t = kLowest<R>;
  R max_s = kLowest<R>, max_t = kLowest<R>;
  int64_t arg_s = 0, arg_t = 0;
  double columns = 0;
  double logit_sum = 0;
  // All sums below are relative to the shifts.
  Shifts<R> shift;
  double z_s = 0, z_t = 0, z_1 = 0, moment_s = 0, moment_t = 0;
  double stream[kMaxStreams] = {0, 0, 0}, cross_shift = 0;
};

// The maximum, or 0 while all logits are -inf: any finite number will do then.
template <class R>
inline R finite(R x) {
  return x == kLowest<R> ? R(0) : x;
}

// Returns the exponent of 2 of a row maximum, rounded. Where it is -inf, or so low that the product becomes
// -inf, any finite shift will do and keeps -inf - shift from being NaN.
template <class R>
inline R exponent_of(R max, R to_exponent) {
  const R exponent = std::nearbyint(max * to_exponent);
  return exponent == kLowest<R> ? R(0) : exponent;
}

// Returns the shifts for the largest logits so far.
template <class V, class Div, class R>
inline Shifts<R> shifts_for(const RowSetup<V, Div>& setup, const RowState<R>& row) {
  Shifts<R> to;
  to.s = exponent_of(row.max_s, R(setup.to_exponent_s));
  to.t = exponent_of(row.max_t, R(setup.to_exponent_t));
  if (setup.same_temperature && setup.kTeacher && std::fabs(to.s - to.t) < 4)
    to.s = to.t = std::max(to.s, to.t);
  to.one =
      setup.power == 0 ? exponent_of(row.max_s, R(setup.to_exponent_1)) : exponent_of(to.s, R(setup.power));
  if constexpr (RowSetup<V, Div>::kTeacher) {
    const double s = finite(row.max_s), t = finite(row.max_t);
    const double ratio = (t * setup.temperatures - s) * setup.to_nats;
    to.ratio = static_cast<R>(ratio);
    to.base = kLn2 * (t * setup.to_exponent_t - s * setup.to_exponent_s) + (to.ratio - ratio);
  }
  return to;
}

inline void rescale(double& sum, double by) {
  if (sum != 0) sum *= std::exp2(by);
}

// Converts all sums to shifts, and to a base, that are smaller by these amounts.
template <class Div, class R>
inline void move_sums(const Div& div, RowState<R>& row, double by_s, double by_t, double by_1,
                      double by_base) {
  rescale(row.z_s, by_s);
  rescale(row.z_t, by_t);
  rescale(row.z_1, by_1);
  rescale(row.moment_s, by_s);
  rescale(row.moment_t, by_t);
  for (int k = 0; k < Div::kStreams; ++k) {
    const double a = div.teacher_power(k), b = div.student_power(k);
    if (Div::kCross && k == 0) {
      rescale(row.stream[k], (a + b) * by_s + kLog2e * a * by_base);
    } else {
      rescale(row.stream[k], a * by_t + b * by_s);
    }
    if (!Div::kCross && by_base != 0) row.stream[k] += times(a == 1 ? row.z_t : row.z_s, by_base);
  }
}

template <class V, class Div, class R>
inline void move_to(const RowSetup<V, Div>& setup, RowState<R>& row, const Shifts<R>& to) {
  move_sums(setup.div, row, double(row.shift.s) - to.s, double(row.shift.t) - to.t,
            double(row.shift.one) - to.one, row.shift.base - to.base);
  row.shift = to;
}

// Returns 1 / z. Where the label is the only entry that exists, the sum over the others is 0; they then have
// probability 0.
template <class Div>
inline double reciprocal(double z) {
  return Div::kSplitsLabel && z == 0 ? 0 : 1 / z;
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
