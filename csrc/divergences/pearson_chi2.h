// Pearson chi-squared divergence, sum (p - q)^2 / q = sum p^2 / q - 1.
#pragma once

#include "power.h"

namespace fastkd {
inline namespace FASTKD_ISA {

struct PearsonChi2 : Power {
  PearsonChi2() : Power(2) {}

  template <class R>
  FASTKD_HD R value(Row<R>& row) const {
    const R sum = exp(row.log_cross);
    row.constant[0] = sum;
    row.constant[1] = R(-2) * sum;
    return expm1(row.log_cross);
  }
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
