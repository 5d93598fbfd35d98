// KL(p, q) = sum p (log p - log q): the student has to cover everything that the teacher finds likely.
#pragma once

#include "functor.h"

namespace fastkd {
inline namespace FASTKD_ISA {

struct ForwardKL : Functor {
  static constexpr int kStreams = 1;
  static constexpr bool kLinear = true;
  static constexpr Fields kStudentReads = Fields::kProbabilities;
  static double teacher_power(int) { return 1; }

  template <class F>
  FASTKD_HD void stream(const Entry<F>& e, F, F* sum) const {
    sum[0] = times_add(e.et, e.log_ratio_raw, sum[0]);
  }

  template <class R>
  FASTKD_HD R value(Row<R>& row) const {
    return row.stream[0] + row.log_ratio_offset;
  }

  template <class F>
  FASTKD_HD F student(const Entry<F>& e, const Row<F>&) const {
    return e.q_minus_p;
  }

  template <class F>
  FASTKD_HD F teacher(const Entry<F>& e, const Row<F>& row) const {
    return times(e.p, e.log_ratio_raw - row.stream[0]);
  }
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
