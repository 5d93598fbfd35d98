// Logarithms of both distributions' ratios to a mixture of them, in two forms. Mixture starts from the larger
// of the two probabilities and its relative difference to the mixture, which keeps the digits where the
// models agree. LogMixture starts from log p - log q alone, for processors that have instructions for the
// exponential and the logarithm.
#pragma once

#include "functor.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// The mixture m = share p + (1 - share) q at one entry.
template <class F>
struct Mixture {
  // Returns r = m / max(p, q), and sets less_one to r - 1. Starting from the larger one, neither can
  // underflow. They are computed from the difference of p and q where these are near each other and from
  // their quotient elsewhere: each form keeps digits that the other would lose. NaN where p and q are both 0;
  // times() then ignores it.
  static FASTKD_HD F over_larger(const Entry<F>& e, double share, F& less_one) {
    const F d = e.q_minus_p, zero(0);
    const F larger = where_le(d, zero, e.p, e.q), smaller = where_le(d, zero, e.q, e.p);
    const F of_larger = where_le(d, zero, F(share), F(1 - share));
    const F of_smaller = where_le(d, zero, F(1 - share), F(share));
    const F gap = abs(d), half = F(0.5) * larger;
    const F quotient = of_smaller * (where_le(gap, half, zero - gap, smaller) / larger);
    const F ratio = where_le(gap, half, F(1), of_larger) + quotient;
    less_one = where_le(gap, half, quotient, ratio - F(1));
    return ratio;
  }

  // log p - log m
  static FASTKD_HD F p_over_m(const Entry<F>& e) { return smaller_of(e.log_ratio, F(0)) - e.log; }
  // log m - log q. The negative, log q - log m, would need one more operation.
  static FASTKD_HD F m_over_q(const Entry<F>& e) { return larger_of(e.log_ratio, F(0)) + e.log; }
};

// The mixture m = share p + (1 - share) q at one entry. With r = log p - log q,
//   log(p / m) = -log(share + (1 - share) e^-r).
// For small r this is computed by its power series, whose coefficients are the cumulants of a coin (a
// Bernoulli variable): near 0 the absolute error of the instructions would be larger than the series'.
struct LogMixture {
  static constexpr int kTerms = 3;
  static constexpr float kSmall = 0.0625f;  // the error of the series is at most 5e-6 up to here

  float share, rest;
  float term[kTerms];

  explicit LogMixture(double s) : share(static_cast<float>(s)), rest(static_cast<float>(1 - s)) {
    const double c = 1 - s, v = s * c;
    const double cumulant[kTerms] = {c, v, v * (1 - 2 * c)};
    double factorial = 1;
    for (int k = 0; k < kTerms; ++k) {
      factorial *= k + 1;
      term[k] = static_cast<float>((k % 2 == 0 ? 1 : -1) * cumulant[k] / factorial);
    }
  }

  // Returns log(m / max(p, q)). It is exactly 0 at r = 0. It is NaN where p and q are both 0; times() then
  // ignores it.
  FASTKD_HD float over_larger(float r) const {
    const float of_larger = r >= 0 ? share : rest, of_smaller = r >= 0 ? rest : share;
    const float smaller = exp2_any(::fabsf(r) * static_cast<float>(-kLog2e));
    const float far = static_cast<float>(kLn2) * log2_fast(::fmaf(of_smaller, smaller, of_larger));
    float sum = term[kTerms - 1];
    for (int k = kTerms - 2; k >= 0; --k) sum = ::fmaf(sum, r, term[k]);
    return select_less(::fabsf(r), kSmall, ::fmaf(-sum, r, ::fminf(r, 0.0f)), far);
  }
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
