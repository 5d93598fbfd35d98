// A distribution beside a mixture of it with another. Logarithms to the mixture start from the larger of the
// two, as log1p of its relative difference to the mixture: that keeps its digits where the models agree and
// never takes the logarithm of an underflowed sum.
#pragma once

#include <type_traits>

#include "log_mixture.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// For m = share p + (1 - share) q at one entry:
template <class F>
struct Mixture {
  // The logarithm of m / larger is that of this plus `lost`, what its rounding lost. By the difference where
  // p and q are near each other and by their quotient where they are not: each form keeps what the other
  // would round away. NaN where p and q are both 0, for times() to pass over.
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
  // log m - log q, which takes an operation less than its negative
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
