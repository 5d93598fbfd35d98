// KL(q, p) = sum q (log q - log p): the student has to stay within what the teacher finds likely.
#pragma once

#include "functor.h"

namespace fastkd {
inline namespace FASTKD_ISA {

struct ReverseKL : Functor {
  static constexpr int kStreams = 1;
  static double student_power(int) { return 1; }

  template <class F>
  FASTKD_HD void stream(const Entry<F>& e, F, F* sum) const {
    sum[0] = times_add(e.es, e.log_ratio_raw, sum[0]);
  }

  template <class R>
  FASTKD_HD R value(Row<R>& row) const {
    return R(0) - row.stream[0] - row.log_ratio_offset;
  }

  template <class F>
  FASTKD_HD F student(const Entry<F>& e, const Row<F>& row) const {
    return times(e.q, row.stream[0] - e.log_ratio_raw);
  }

  template <class F>
  FASTKD_HD F teacher(const Entry<F>& e, const Row<F>&) const {
    return F(0) - e.q_minus_p;
  }
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
