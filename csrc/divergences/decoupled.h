// TCKD + b NCKD (DKD, Zhao et al. 2022): the KL of the two classes label / all others, and the KL among the
// others, where p and q are normalised without the label.
#pragma once

#include "functor.h"

namespace fastkd {
inline namespace FASTKD_ISA {

struct Decoupled : Functor {
  static constexpr int kStreams = 1;
  static constexpr bool kSplitsLabel = true, kLinear = true;
  static constexpr Fields kStudentReads = Fields::kProbabilities;
  static double teacher_power(int) { return 1; }

  double beta;
  explicit Decoupled(double b) : beta(b) {}

  template <class F>
  FASTKD_HD void stream(const Entry<F>& e, F, F* sum) const {
    sum[0] = times_add(e.et, e.log_ratio_raw, sum[0]);
  }

  template <class R>
  FASTKD_HD R value(Row<R>& row) const {
    // q_label - p_label = p_others - q_others: the difference of the smaller pair keeps more digits.
    const R gap = row.p_label < R(0.5) ? row.q_label - row.p_label : row.p_others - row.q_others;
    const R target = times(row.p_label, row.label_ratio) + times(row.p_others, row.others_ratio);
    // Where p has only the label, the log of its rest is -inf and there is nothing to compare.
    const bool any = row.others_ratio > -std::numeric_limits<R>::infinity();
    const R others = any ? row.stream[0] + row.log_ratio_offset : R(0);
    row.constant[0] = gap;
    row.constant[1] = times(row.p_label, times(row.p_others, row.label_ratio - row.others_ratio));
    row.constant[2] = any ? row.stream[0] : R(0);
    return target + R(beta) * others;
  }

  template <class F>
  FASTKD_HD F student(const Entry<F>& e, const Row<F>& row) const {
    return F(beta) * e.q_minus_p - row.constant[0] * e.q;
  }

  template <class F>
  FASTKD_HD F teacher(const Entry<F>& e, const Row<F>& row) const {
    return times(e.p, F(beta) * (e.log_ratio_raw - row.constant[2]) - row.constant[1]);
  }

  template <class R>
  FASTKD_HD R label_student(const Row<R>& row) const {
    return row.constant[0];
  }
  template <class R>
  FASTKD_HD R label_teacher(const Row<R>& row) const {
    return row.constant[1];
  }
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
