// The shifts of a row. Exponentials are powers of two, with exponents x = logit * log2(e) / T - shift. The
// shift is an integer near the row maximum: near the maximum of the columns that made the kernel change it.
// With equal temperatures and maxima near each other both rows share one shift. Equal logits then give equal
// exponentials, and q - p is right to the last digits however similar the models are.
#pragma once

#include <cmath>
#include <limits>

#include "../../divergences/arithmetic.h"

namespace fastkd {
inline namespace FASTKD_ISA {

template <class R>
constexpr R kLowest = -std::numeric_limits<R>::infinity();

template <class R>
struct Shifts {
  R s = 0, t = 0, ce = 0;  // for the student, the teacher, the student at temperature 1
  // Log-ratios are relative to the log-ratio of the largest logits, so that logits which differ by a constant
  // have ratios near 0. That number is stored twice: as the distance s - t * T / T_t of these logits, in the
  // unit in which ratio_of() subtracts it, and in nats as the exponentials imply it (`base`), whose scales
  // are rounded differently.
  R distance = 0;
  double base = 0;

  bool operator==(const Shifts& x) const { return s == x.s && t == x.t && ce == x.ce && base == x.base; }
};

// The maximum, or 0 while all logits are -inf: any finite number will do then.
template <class R>
inline R finite(R x) {
  return x == kLowest<R> ? R(0) : x;
}

// Returns the exponent of 2 of a row maximum, rounded. Where it is -inf, or so low that the product becomes
// -inf, any finite shift will do and keeps -inf - shift from being NaN.
template <class R>
inline R exponent_of(R max, R log2_scale) {
  const R exponent = std::nearbyint(max * log2_scale);
  return exponent == kLowest<R> ? R(0) : exponent;
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
