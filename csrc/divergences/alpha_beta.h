// Alpha-beta divergence, -1 / (a b) sum (p^a q^b - a / (a + b) p^(a + b) - b / (a + b) q^(a + b)) (ABKD, Wang
// et al. 2025). With C, P, Q the sums of the three powers,
//   dD / d(s / T) = -1/a ((p^a q^b - q^(a + b)) - q (C - Q)),
//   dD / d(t / T_t) = -1/b ((p^a q^b - p^(a + b)) - p (C - P)).
#pragma once

#include "functor.h"

namespace fastkd {
inline namespace FASTKD_ISA {

struct AlphaBeta : Functor {
  static constexpr int kStreams = 3;  // C, P, Q
  static constexpr bool kCross = true, kOwnPower = true;
  static constexpr Fields kStudentReads = Fields::kTerms;

  double a, b;
  AlphaBeta(double alpha, double beta) : a(alpha), b(beta) {}

  double teacher_power(int k) const { return k == 0 ? a : k == 1 ? a + b : 0; }
  double student_power(int k) const { return k == 0 ? b : k == 1 ? 0 : a + b; }

  template <class F>
  FASTKD_HD Terms<F> terms(const Entry<F>& e, F shift) const {
    const F own = power_of(e.xs, e.xt, a + b);
    return {cross_term(e, own, a, b, shift), own};
  }

  template <class F>
  FASTKD_HD void add_terms(const Entry<F>& e, const Terms<F>& terms, F* sum) const {
    sum[0] = sum[0] + terms.cross;
    sum[1] = sum[1] + power_of(e.xt, e.xs, a + b);
    sum[2] = sum[2] + terms.own;
  }

  template <class F>
  FASTKD_HD void stream(const Entry<F>& e, F shift, F* sum) const {
    add_terms(e, terms(e, shift), sum);
  }

  template <class R>
  FASTKD_HD R value(Row<R>& row) const {
    const R c_minus_q = row.stream[0] - row.stream[2], p_minus_q = row.stream[1] - row.stream[2];
    row.constant[0] = c_minus_q;
    row.constant[1] = row.stream[0] - row.stream[1];
    // If one side rules out what the other allows, D is infinite; the formula would give infinity - infinity.
    const R infinity = std::numeric_limits<R>::infinity();
    if (row.stream[0] + row.stream[1] + row.stream[2] == infinity) return infinity;
    return R(-1 / (a * b)) * (c_minus_q - R(a / (a + b)) * p_minus_q);
  }

  template <class F>
  FASTKD_HD F student(const Entry<F>& e, const Row<F>& row) const {
    return student(e, terms(e, row.cross_shift), row);
  }
  // The same, given the entry's Terms, which sweep 1 has stored on the CPU.
  template <class F>
  FASTKD_HD F student(const Entry<F>& e, const Terms<F>& terms, const Row<F>& row) const {
    const F difference = terms.cross * row.scale[0] - terms.own * row.scale[2];
    return F(-1 / a) * (difference - e.q * row.constant[0]);
  }

  template <class F>
  FASTKD_HD F teacher(const Entry<F>& e, const Row<F>& row) const {
    const F difference =
        terms(e, row.cross_shift).cross * row.scale[0] - power_of(e.xt, e.xs, a + b) * row.scale[1];
    return F(-1 / b) * (difference - e.p * row.constant[1]);
  }
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
