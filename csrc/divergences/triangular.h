// Triangular discrimination, sum (p - q)^2 / (p + q) (Topsoe 2000).
#pragma once

#include "functor.h"

namespace fastkd {
inline namespace FASTKD_ISA {

struct Triangular : Functor {
  static constexpr int kSums = 2;  // the value, sum q dD/dq
  static constexpr Fields kSumsRead = Fields::kProbabilities, kStudentReads = Fields::kProbabilities;

  // Returns (q - p) / (q + p), which is 0 where both are 0. The reciprocal of a subnormal number could
  // overflow, so a subnormal q + p counts as 0.
  template <class F>
  FASTKD_HD F contrast(const Entry<F>& e) const {
    const F both = e.p + e.q;
    return where_le(both, F(std::numeric_limits<float>::min()), F(0), divide(e.q_minus_p, both));
  }

  template <class F>
  FASTKD_HD void sums(const Entry<F>& e, F* sum) const {
    const F r = contrast(e);
    sum[0] = sum[0] + e.q_minus_p * r;
    sum[1] = sum[1] + e.q * (r * (F(2) - r));
  }

  template <class R>
  FASTKD_HD R value(Row<R>& row) const {
    row.constant[0] = row.sum[0] - row.sum[1];  // sum p dD/dp, because the value is sum p dD/dp + q dD/dq
    return row.sum[0];
  }

  template <class F>
  FASTKD_HD F student(const Entry<F>& e, const Row<F>& row) const {
    const F r = contrast(e);
    return e.q * (r * (F(2) - r) - row.sum[1]);
  }

  template <class F>
  FASTKD_HD F teacher(const Entry<F>& e, const Row<F>& row) const {
    const F r = contrast(e);
    return e.p * (F(0) - r * (F(2) + r) - row.constant[0]);
  }
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
