// KL(q, p) = sum q (log q - log p): the student keeps to what the teacher holds likely.
#pragma once

#include "entry.h"

namespace fastkd {
inline namespace FASTKD_ISA {

struct ReverseKL {
  static constexpr bool kNeedsPQ = false;
  static constexpr bool kNeedsQP = true;
  static constexpr int kSums = 0;

  explicit ReverseKL(double) {}

  template <class F>
  FASTKD_HD void sums(const Entry<F>&, F*) const {}

  template <class R>
  FASTKD_HD R value(const Row<R>& row) const {
    return row.kl_qp;
  }

  template <class F>
  FASTKD_HD F student(const Entry<F>& e, const Row<F>& row) const {
    return times(e.q, F(0) - e.log_ratio - row.kl_qp);
  }

  template <class F>
  FASTKD_HD F teacher(const Entry<F>& e, const Row<F>&) const {
    return F(0) - e.q_minus_p;
  }
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
