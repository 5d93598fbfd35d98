// A distribution seen as two classes, a label and all others.
#pragma once

#include "exponents.cuh"

namespace fastkd {
namespace cuda {

struct Split {
  float label, others;          // probabilities, each with all its digits
  float log_label, log_others;  // in nats
};

// Computes the two classes from log2 of the odds of label to others.
__device__ __forceinline__ Split split(float bits) {
  const float odds = kLn2 * bits, rest = log1pf(expf(-fabsf(odds)));
  Split s;
  s.log_label = fminf(odds, 0.0f) - rest;
  s.log_others = fminf(-odds, 0.0f) - rest;
  s.label = expf(s.log_label);
  s.others = expf(s.log_others);
  return s;
}

}  // namespace cuda
}  // namespace fastkd
