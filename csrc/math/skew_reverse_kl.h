// KL(q, m) with m = b q + (1 - b) p (DistiLLM, Ko et al. 2024): skew_forward_kl with the sides exchanged.
#pragma once

#include "mixture.h"

namespace fastkd {
inline namespace FASTKD_ISA {

struct SkewReverseKL : Functor {
  static constexpr bool kLog = true;
  static constexpr int kSums = 2;  // KL(q, m), sum p u with u = (q - m) / m

  double beta;
  explicit SkewReverseKL(double b) : beta(b) {}

  template <class F>
  FASTKD_HD F log_argument(const Entry<F>& e, F& lost) const {
    return Mixture<F>::over_larger(e, 1 - beta, lost);
  }

  template <class F>
  FASTKD_HD F excess(const Entry<F>& e) const {
    return F(1 - beta) * e.q_minus_p / Mixture<F>::m(e, 1 - beta);
  }

  template <class F>
  FASTKD_HD void sums(const Entry<F>& e, F* sum) const {
    sum[0] = times_add(e.q, Mixture<F>::log_q(e), sum[0]);
    sum[1] = times_add(e.p, excess(e), sum[1]);
  }

  template <class R>
  FASTKD_HD R value(Row<R>& row) const {
    row.constant[0] = row.sum[0] + R(1 - beta) * row.sum[1];
    return row.sum[0];
  }

  template <class F>
  FASTKD_HD F student(const Entry<F>& e, const Row<F>& row) const {
    return times(e.q, Mixture<F>::log_q(e) - F(beta) * excess(e) - row.constant[0]);
  }

  template <class F>
  FASTKD_HD F teacher(const Entry<F>& e, const Row<F>& row) const {
    return F(beta - 1) * times(e.p, excess(e) - row.sum[1]);
  }
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
