// Generalized Jensen-Shannon divergence, b KL(p, m) + (1 - b) KL(q, m) with m = b p + (1 - b) q
// (Agarwal et al. 2024).
#pragma once

#include "mixture.h"

namespace fastkd {
inline namespace FASTKD_ISA {

struct JSD : Functor {
  static constexpr bool kLog = true;
  static constexpr int kSums = 2;  // KL(p, m), -KL(q, m)
  static constexpr Fields kStudentReads = Fields::kStored;

  double beta;
  LogMixture log_mixture;
  explicit JSD(double b) : beta(b), log_mixture(b) {}

  double teacher_share() const { return beta; }

  template <class F>
  FASTKD_HD F log_argument(const Entry<F>& e, F& less_one) const {
    return Mixture<F>::over_larger(e, beta, less_one);
  }

  FASTKD_HD float log_of(const Entry<float>& e) const { return log_mixture.over_larger(e.log_ratio); }

  template <class F>
  FASTKD_HD void sums(const Entry<F>& e, F* sum) const {
    sum[0] = times_add(e.p, Mixture<F>::p_over_m(e), sum[0]);
    sum[1] = times_add(e.q, Mixture<F>::m_over_q(e), sum[1]);
  }

  template <class R>
  FASTKD_HD R value(Row<R>& row) const {
    return R(beta) * row.sum[0] - R(1 - beta) * row.sum[1];
  }

  template <class F>
  FASTKD_HD F student(const Entry<F>& e, const Row<F>& row) const {
    return student(e, stored(e), row);
  }
  // The same, given stored(), which is log m - log q here.
  template <class F>
  FASTKD_HD F student(const Entry<F>& e, F m_over_q, const Row<F>& row) const {
    return F(1 - beta) * times(e.q, row.sum[1] - m_over_q);
  }
  template <class F>
  FASTKD_HD F stored(const Entry<F>& e) const {
    return Mixture<F>::m_over_q(e);
  }

  template <class F>
  FASTKD_HD F teacher(const Entry<F>& e, const Row<F>& row) const {
    return F(beta) * times(e.p, Mixture<F>::p_over_m(e) - row.sum[0]);
  }
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
