// KL(p, m) with m = b p + (1 - b) q: the forward divergence to a mixture, which stays bounded (DistiLLM, Ko
// et al. 2024). The gradients use u = (p - m) / m, which is small where the models agree. Since sum m u = 0,
// the mean of u under p follows from its mean under q.
#pragma once

#include "mixture.h"

namespace fastkd {
inline namespace FASTKD_ISA {

struct SkewForwardKL : Functor {
  static constexpr bool kLog = true;
  static constexpr int kSums = 2;  // KL(p, m), sum q u
  static constexpr Fields kStudentReads = Fields::kStored;

  double beta;
  LogMixture log_mixture;
  explicit SkewForwardKL(double b) : beta(b), log_mixture(b) {}

  double teacher_share() const { return beta; }

  template <class F>
  FASTKD_HD F log_argument(const Entry<F>& e, F& lost) const {
    return Mixture<F>::over_larger(e, beta, lost);
  }

  FASTKD_HD float log_of(const Entry<float>& e) const { return log_mixture.over_larger(e.log_ratio); }

  template <class F>
  FASTKD_HD F excess(const Entry<F>& e) const {
    return divide(F(beta - 1) * e.q_minus_p, Mixture<F>::m(e, beta));
  }

  template <class F>
  FASTKD_HD void sums(const Entry<F>& e, F* sum) const {
    sum[0] = times_add(e.p, Mixture<F>::p_over_m(e), sum[0]);
    sum[1] = times_add(e.q, excess(e), sum[1]);
  }

  template <class R>
  FASTKD_HD R value(Row<R>& row) const {
    row.constant[0] = row.sum[0] + R(1 - beta) * row.sum[1];
    return row.sum[0];
  }

  template <class F>
  FASTKD_HD F student(const Entry<F>& e, const Row<F>& row) const {
    return student(e, stored(e), row);
  }
  // The same, given stored(), which is u here.
  template <class F>
  FASTKD_HD F student(const Entry<F>& e, F u, const Row<F>& row) const {
    return F(beta - 1) * times(e.q, u - row.sum[1]);
  }
  template <class F>
  FASTKD_HD F stored(const Entry<F>& e) const {
    return excess(e);
  }

  template <class F>
  FASTKD_HD F teacher(const Entry<F>& e, const Row<F>& row) const {
    return times(e.p, slope(e) - row.constant[0]);
  }
  // Returns log p - log m - b u, the teacher's gradient of p (log p - log m) per p.
  template <class F>
  FASTKD_HD F slope(const Entry<F>& e) const {
    return Mixture<F>::p_over_m(e) - F(beta) * excess(e);
  }
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
