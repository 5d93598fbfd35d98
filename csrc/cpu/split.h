// A distribution seen as two classes, a label and all others.
#pragma once

#include <cmath>

#include "../divergences/functor.h"

namespace fastkd {
inline namespace FASTKD_ISA {

struct Split {
  double label, others;          // probabilities, each with all its digits
  double log_label, log_others;  // in nats
};

// Computes the two classes from log2 of the odds of label to others.
inline Split split(double bits) {
  const double odds = kLn2 * bits, rest = std::log1p(std::exp(-std::fabs(odds)));
  Split s;
  s.log_label = (odds < 0 ? odds : 0) - rest;
  s.log_others = (odds < 0 ? 0 : -odds) - rest;
  s.label = std::exp(s.log_label);
  s.others = std::exp(s.log_others);
  return s;
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
