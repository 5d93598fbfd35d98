// Logarithms of a distribution's ratio to a mixture of it with another. They are computed from the larger of
// the two distributions, as log1p of its relative difference to the mixture: this keeps the digits where the
// models agree, and never takes the logarithm of an underflowed sum.
#pragma once

#include <type_traits>

#include "log_mixture.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// The mixture m = share p + (1 - share) q at one entry.
template <class F>
struct Mixture {
  // Returns r with log(m / max(p, q)) = log(r) + lost, where `lost` is the rounding error of r. r is computed
  // from the difference of p and q where they are near each other and from their quotient elsewhere: each
  // form keeps digits that the other would lose. NaN where p and q are both 0; times() then ignores it.
  static FASTKD_HD F over_larger(const Entry<F>& e, double share, F& lost) {
    const F d = e.q_minus_p, zero(0);
    const F larger = where_le(d, zero, e.p, e.q), smaller = where_le(d, zero, e.q, e.p);
    const F of_larger = where_le(d, zero, F(share), F(1 - share));
    const F of_smaller = where_le(d, zero, F(1 - share), F(share));
    const F gap = abs(d), half = F(0.5) * larger;
    const F quotient = of_smaller * (where_le(gap, half, zero - gap, smaller) / larger);
    const F ratio = where_le(gap, half, F(1), of_larger) + quotient;
    lost = where_le(gap, half, quotient - (ratio - F(1)), zero);
    return ratio;
  }

  // log p - log m
  static FASTKD_HD F p_over_m(const Entry<F>& e) {
    if constexpr (std::is_same<F, float>::value) {
      return ::fminf(e.log_ratio, 0.0f) - e.log;
    } else {
      return min(e.log_ratio, F(0)) - e.log;
    }
  }
  // log m - log q. The negative, log q - log m, would need one more operation.
  static FASTKD_HD F m_over_q(const Entry<F>& e) {
    if constexpr (std::is_same<F, float>::value) {
      return ::fmaxf(e.log_ratio, 0.0f) + e.log;
    } else {
      return max(e.log_ratio, F(0)) + e.log;
    }
  }

  static FASTKD_HD F m(const Entry<F>& e, double share) { return F(share) * e.p + F(1 - share) * e.q; }
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
