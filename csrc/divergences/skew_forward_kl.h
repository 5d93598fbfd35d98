// KL(p, m) with m = b p + (1 - b) q: the forward divergence to a mixture, which stays bounded (DistiLLM, Ko
// et al. 2024). The gradients use u = (p - m) / m, which is small where the models agree. Since sum m u = 0,
// the mean of u under p follows from its mean under q.
#pragma once

#include "functor.h"

namespace fastkd {
inline namespace FASTKD_ISA {

struct SkewForwardKL : Functor {
  static constexpr int kSums = 2;  // KL(p, m), sum q u
  static constexpr Fields kSumsRead = Fields::kProbabilities, kStudentReads = Fields::kStored;

  double beta;
  explicit SkewForwardKL(double b) : beta(b) {}

  // Returns 1 / m, which is finite where m is subnormal, too.
  template <class F>
  FASTKD_HD F inverse_m(const Entry<F>& e) const {
    const F least(std::numeric_limits<float>::min()), m = F(beta) * e.p + F(1 - beta) * e.q;
    return divide(F(1), larger_of(least, m));
  }
  template <class F>
  FASTKD_HD F excess(const Entry<F>& e) const {
    return F(beta - 1) * e.q_minus_p * inverse_m(e);
  }

  // Returns log p - log m. One division serves this and the excess: p / m is 1 + u, and each of the two has
  // digits that the other has lost.
  template <class F>
  FASTKD_HD F p_over_m(const Entry<F>& e) const {
    return log_one_plus(excess(e), e.p * inverse_m(e));
  }

  // Adds p log(p / m) - (p - m), since p - m adds up to 0. Where models are near each other, the roundings of
  // p in the two cancel.
  template <class F>
  FASTKD_HD void sums(const Entry<F>& e, F* sum) const {
    sum[0] = F(1 - beta) * e.q_minus_p + times_add(e.p, p_over_m(e), sum[0]);
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
    return p_over_m(e) - F(beta) * excess(e);
  }
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
