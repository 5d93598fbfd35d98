// Renyi divergence, log(sum p^a q^(1 - a)) / (a - 1) (Renyi 1961).
#pragma once

#include "power.h"

namespace fastkd {
inline namespace FASTKD_ISA {

struct Renyi : Power {
  using Power::Power;

  template <class R>
  FASTKD_HD R value(Row<R>& row) const {
    row.constant[0] = R(1);
    row.constant[1] = R(a / (1 - a));
    return row.log_cross * R(1 / (a - 1));
  }
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
