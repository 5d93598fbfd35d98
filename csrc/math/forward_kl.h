// KL(p, q) = sum p (log p - log q): the student covers all that the teacher holds likely.
#pragma once

#include "entry.h"

namespace fastkd {
inline namespace FASTKD_ISA {

struct ForwardKL {
  static constexpr bool kNeedsPQ = true;   // Row::kl_pq
  static constexpr bool kNeedsQP = false;  // Row::kl_qp
  static constexpr int kSums = 0;          // sums that need both log-sum-exps first: one more sweep

  explicit ForwardKL(double) {}

  template <class F>
  FASTKD_HD void sums(const Entry<F>&, F*) const {}

  template <class R>
  FASTKD_HD R value(const Row<R>& row) const {
    return row.kl_pq;
  }

  // d value / d (s / T)
  template <class F>
  FASTKD_HD F student(const Entry<F>& e, const Row<F>&) const {
    return e.q_minus_p;
  }

  // d value / d (t / T_t)
  template <class F>
  FASTKD_HD F teacher(const Entry<F>& e, const Row<F>& row) const {
    return times(e.p, e.log_ratio - row.kl_pq);
  }
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
