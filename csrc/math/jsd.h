// Generalized Jensen-Shannon divergence, b KL(p, m) + (1 - b) KL(q, m) with m = b p + (1 - b) q
// (Agarwal et al. 2024). The logarithms to m are taken as log1p of the relative difference, which keeps its
// digits where the models agree and never takes the logarithm of an underflowed sum.
#pragma once

#include "entry.h"

namespace fastkd {
inline namespace FASTKD_ISA {

struct JSD {
  static constexpr bool kNeedsPQ = false;
  static constexpr bool kNeedsQP = false;
  static constexpr int kSums = 2;  // KL(p, m), KL(q, m)

  double beta;
  explicit JSD(double b) : beta(b) {}

  template <class F>
  FASTKD_HD F log_p_over_m(const Entry<F>& e) const {
    return F(0) - log1p(F(1 - beta) * (e.q_minus_p / e.p));
  }

  template <class F>
  FASTKD_HD F log_q_over_m(const Entry<F>& e) const {
    return F(0) - log1p(F(-beta) * (e.q_minus_p / e.q));
  }

  template <class F>
  FASTKD_HD void sums(const Entry<F>& e, F* sum) const {
    sum[0] = sum[0] + times(e.p, log_p_over_m(e));
    sum[1] = sum[1] + times(e.q, log_q_over_m(e));
  }

  template <class R>
  FASTKD_HD R value(const Row<R>& row) const {
    return R(beta) * row.sum[0] + R(1 - beta) * row.sum[1];
  }

  template <class F>
  FASTKD_HD F student(const Entry<F>& e, const Row<F>& row) const {
    return F(1 - beta) * times(e.q, log_q_over_m(e) - row.sum[1]);
  }

  template <class F>
  FASTKD_HD F teacher(const Entry<F>& e, const Row<F>& row) const {
    return F(beta) * times(e.p, log_p_over_m(e) - row.sum[0]);
  }
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
