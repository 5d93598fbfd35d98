// Negative logarithm of the acceptance rate of speculative decoding, -log(sum min(p, q)) = -log(1 - TVD)
// (Samarin et al. 2026).
#pragma once

#include "tvd.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// With A = sum min(p, q) the gradient is TVD's divided by A. Where p and q share little, 1 - TVD has lost the
// digits of A. A is then summed directly, in two parts: u, the sum of q where q < p, and v, the sum of p
// where p < q; half of a tie goes to each.
struct LogAcceptance : TVD {
  static constexpr bool kDistant = true;

  template <class R>
  FASTKD_HD bool is_distant(const R* sum) const {
    return sum[0] > R(1.75);  // the same number as in fastkd/backends/record.py
  }

  // Returns the exponent of 2 of min(p, q).
  template <class F>
  FASTKD_HD F distant_exponent(const Entry<F>& e, const Row<F>& row) const {
    return where_le(e.log_ratio, F(0), e.xt - row.bits_t, e.xs - row.bits_s);
  }

  template <class F>
  FASTKD_HD void distant_sums(const Entry<F>& e, const Row<F>& row, F top, F* sum) const {
    const F smaller = exp2_any(distant_exponent(e, row) - top), half = F(0.5) * smaller;
    sum[0] = sum[0] + where_le(e.log_ratio, F(0), where_le(F(0), e.log_ratio, half, F(0)), smaller);
    sum[1] = sum[1] + where_le(F(0), e.log_ratio, where_le(e.log_ratio, F(0), half, F(0)), smaller);
  }

  template <class R>
  FASTKD_HD R value(Row<R>& row) const {
    if (row.distant) return distant_value(row);
    const R apart = TVD::value(row);
    row.constant[1] = R(1) / (R(1) - apart);
    return R(0) - log1p(R(0) - apart);
  }

  template <class F>
  FASTKD_HD F student(const Entry<F>& e, const Row<F>& row) const {
    if (!row.distant) return row.constant[1] * TVD::student(e, row);
    const F share = exp2_any(e.xs - row.constant[4]);  // q / A
    const F less = F(0) - row.constant[2] * share, tie = (F(0.5) - row.constant[2]) * share;
    return where_le(e.log_ratio, F(0), where_le(F(0), e.log_ratio, tie, e.q * row.constant[0]), less);
  }

  template <class F>
  FASTKD_HD F teacher(const Entry<F>& e, const Row<F>& row) const {
    if (!row.distant) return row.constant[1] * TVD::teacher(e, row);
    const F share = exp2_any(e.xt - row.constant[5]);  // p / A
    const F less = F(0) - row.constant[3] * share, tie = (F(0.5) - row.constant[3]) * share;
    return where_le(F(0), e.log_ratio, where_le(e.log_ratio, F(0), tie, e.p * row.constant[1]), less);
  }

 private:
  // Computes D from log2 u and log2 v. Rows that share nothing are infinitely far apart, and their gradient
  // is 0, because no small change of the logits alters that.
  template <class R>
  FASTKD_HD R distant_value(Row<R>& row) const {
    const R u = row.sum[0], v = row.sum[1], larger = u < v ? v : u;
    const R infinity = std::numeric_limits<R>::infinity();
    const bool disjoint = larger == -infinity;
    const R bits = disjoint ? larger : larger + ::log2(::exp2(u - larger) + ::exp2(v - larger));  // log2 A
    row.constant[0] = disjoint ? R(0) : ::exp2(u - bits);                                         // u / A
    row.constant[1] = disjoint ? R(0) : ::exp2(v - bits);
    row.constant[2] = disjoint ? R(0) : R(1) - ::exp2(u);
    row.constant[3] = disjoint ? R(0) : R(1) - ::exp2(v);
    row.constant[4] = disjoint ? infinity : row.bits_s + bits;
    row.constant[5] = disjoint ? infinity : row.bits_t + bits;
    return R(-kLn2) * bits;
  }
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
