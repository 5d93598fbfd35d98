// Amari alpha-divergence, (1 - sum p^a q^(1 - a)) / (a (1 - a)) (Amari 1985).
#pragma once

#include "power.h"

namespace fastkd {
inline namespace FASTKD_ISA {

struct Alpha : Power {
  using Power::Power;

  template <class R>
  FASTKD_HD R value(Row<R>& row) const {
    const R sum = exp(row.log_cross);
    row.constant[0] = sum / R(a);
    row.constant[1] = sum / R(1 - a);
    return R(-1 / (a * (1 - a))) * expm1(row.log_cross);
  }
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
