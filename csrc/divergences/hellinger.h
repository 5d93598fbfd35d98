// Squared Hellinger distance, 1 - sum sqrt(p q).
#pragma once

#include "power.h"

namespace fastkd {
inline namespace FASTKD_ISA {

struct Hellinger : Power {
  Hellinger() : Power(0.5) {}

  template <class R>
  FASTKD_HD R value(Row<R>& row) const {
    row.constant[0] = row.constant[1] = R(0.5) * exp(row.log_cross);
    return R(0) - expm1(row.log_cross);
  }
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
