// w KL(p, q) + (1 - w) TVD(p, q) with w = exp(-b (1 - TVD)), which the gradients treat as a constant: the
// hybrid of Samarin et al. 2026 with a weight per token. It follows KL where the models share little
// probability, and TVD where they agree.
#pragma once

#include "forward_kl.h"
#include "tvd.h"

namespace fastkd {
inline namespace FASTKD_ISA {

struct KLTVD : TVD {
  static constexpr int kStreams = 1;
  static double teacher_power(int) { return 1; }

  double beta;
  explicit KLTVD(double b) : beta(b) {}

  template <class F>
  FASTKD_HD void stream(const Entry<F>& e, F shift, F* sum) const {
    ForwardKL().stream(e, shift, sum);
  }

  template <class R>
  FASTKD_HD R value(Row<R>& row) const {
    const R apart = TVD::value(row), forward = row.stream[0] + row.log_ratio_offset;
    const R exponent = R(-beta) * (R(1) - apart);
    row.constant[1] = exp(exponent);
    row.constant[2] = R(0) - expm1(exponent);
    return times(row.constant[1], forward) + row.constant[2] * apart;
  }

  template <class F>
  FASTKD_HD F student(const Entry<F>& e, const Row<F>& row) const {
    return row.constant[1] * e.q_minus_p + row.constant[2] * TVD::student(e, row);
  }

  template <class F>
  FASTKD_HD F teacher(const Entry<F>& e, const Row<F>& row) const {
    return row.constant[1] * times(e.p, e.log_ratio_raw - row.stream[0]) +
           row.constant[2] * TVD::teacher(e, row);
  }
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
