// KL(q, m) with m = b q + (1 - b) p (DistiLLM, Ko et al. 2024): skew_forward_kl with the sides exchanged.
#pragma once

#include "skew_forward_kl.h"

namespace fastkd {
inline namespace FASTKD_ISA {

struct SkewReverseKL : SkewForwardKL {
  using SkewForwardKL::SkewForwardKL;

  template <class F>
  static FASTKD_HD Entry<F> exchanged(const Entry<F>& e) {
    Entry<F> x = e;
    x.p = e.q;
    x.q = e.p;
    x.q_minus_p = F(0) - e.q_minus_p;
    x.log_ratio = F(0) - e.log_ratio;
    return x;
  }

  template <class F>
  FASTKD_HD void sums(const Entry<F>& e, F* sum) const {
    SkewForwardKL::sums(exchanged(e), sum);
  }

  template <class F>
  FASTKD_HD F student(const Entry<F>& e, const Row<F>& row) const {
    return SkewForwardKL::teacher(exchanged(e), row);
  }
  // The same, given stored(), which is slope() with the sides exchanged.
  template <class F>
  FASTKD_HD F student(const Entry<F>& e, F slope, const Row<F>& row) const {
    return times(e.q, slope - row.constant[0]);
  }
  template <class F>
  FASTKD_HD F stored(const Entry<F>& e) const {
    return slope(exchanged(e));
  }

  template <class F>
  FASTKD_HD F teacher(const Entry<F>& e, const Row<F>& row) const {
    return SkewForwardKL::student(exchanged(e), row);
  }
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
