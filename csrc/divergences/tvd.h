// Total variation distance, 1/2 sum |p - q|; the subgradient at p = q is 0.
#pragma once

#include "functor.h"

namespace fastkd {
inline namespace FASTKD_ISA {

struct TVD : Functor {
  static constexpr int kSums = 2;  // sum |q - p|, sum q sign(q - p)
  static constexpr Fields kSumsRead = Fields::kProbabilities, kStudentReads = Fields::kProbabilities;

  template <class F>
  FASTKD_HD void sums(const Entry<F>& e, F* sum) const {
    sum[0] = sum[0] + abs(e.q_minus_p);
    sum[1] = add_signed(sum[1], e.q, e.q_minus_p);
  }

  template <class R>
  FASTKD_HD R value(Row<R>& row) const {
    row.constant[0] = row.sum[1] - row.sum[0];         // sum p sign(q - p)
    row.constant[3] = row.sum[1] + R(0) * row.sum[0];  // NaN where q - p is, whatever sign_of() returns
    return R(0.5) * row.sum[0];
  }

  template <class F>
  FASTKD_HD F student(const Entry<F>& e, const Row<F>& row) const {
    return F(0.5) * e.q * (sign_of(e.q_minus_p) - row.constant[3]);
  }

  template <class F>
  FASTKD_HD F teacher(const Entry<F>& e, const Row<F>& row) const {
    return F(-0.5) * e.p * (sign_of(e.q_minus_p) - row.constant[0]);
  }
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
