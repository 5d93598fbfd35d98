// KL(p, q) + KL(q, p) = sum (p - q) (log p - log q): both directions at once (Jeffreys 1946).
#pragma once

#include "functor.h"

namespace fastkd {
inline namespace FASTKD_ISA {

struct Jeffreys : Functor {
  static constexpr int kStreams = 2;
  static double teacher_power(int k) { return k == 0 ? 1 : 0; }
  static double student_power(int k) { return k == 0 ? 0 : 1; }

  template <class F>
  FASTKD_HD void stream(const Entry<F>& e, F, F* sum) const {
    sum[0] = times_add(e.et, e.log_ratio_raw, sum[0]);
    sum[1] = times_add(e.es, e.log_ratio_raw, sum[1]);
  }

  template <class R>
  FASTKD_HD R value(Row<R>& row) const {
    return row.stream[0] - row.stream[1];
  }

  template <class F>
  FASTKD_HD F student(const Entry<F>& e, const Row<F>& row) const {
    return e.q_minus_p + times(e.q, row.stream[1] - e.log_ratio_raw);
  }

  template <class F>
  FASTKD_HD F teacher(const Entry<F>& e, const Row<F>& row) const {
    return times(e.p, e.log_ratio_raw - row.stream[0]) - e.q_minus_p;
  }
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
