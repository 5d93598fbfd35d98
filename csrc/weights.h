// The arithmetic of the tokens' weights (WeightParams), for a CPU and for a CUDA thread.
#pragma once

#include "divergences/arithmetic.h"
#include "params.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// `Half` converts 16-bit numbers: Half::number(bits, whether they are bfloat16).
template <class Real, class Half>
FASTKD_HD Real number_at(const Numbers& numbers, int64_t i) {
  switch (numbers.type) {
    case Scalar::kFloat32:
      return static_cast<Real>(static_cast<const float*>(numbers.data)[i]);
    case Scalar::kFloat64:
      return static_cast<Real>(static_cast<const double*>(numbers.data)[i]);
    case Scalar::kInt64:
      return static_cast<Real>(static_cast<const int64_t*>(numbers.data)[i]);
    case Scalar::kInt32:
      return static_cast<Real>(static_cast<const int32_t*>(numbers.data)[i]);
    case Scalar::kBool:
      return static_cast<Real>(static_cast<const bool*>(numbers.data)[i]);
    default:
      return Half::number(static_cast<const uint16_t*>(numbers.data)[i], numbers.type == Scalar::kBFloat16);
  }
}

// Returns the token's weight before the division.
template <class Real, class Half>
FASTKD_HD Real weight_at(const WeightParams& p, int64_t row) {
  if (p.labels != nullptr && p.labels[row] == p.ignore_index) return Real(0);
  return p.token_weights.data != nullptr ? number_at<Real, Half>(p.token_weights, row) : Real(1);
}

// Returns the factor of all weights, given their sum, which matters for Divisor::kSum only.
template <class Real, class Half>
FASTKD_HD Real weight_factor(const WeightParams& p, Real sum) {
  if (p.divisor == WeightParams::Divisor::kFactor) return static_cast<Real>(p.factor);
  const Real total = p.divisor == WeightParams::Divisor::kSum ? sum : number_at<Real, Half>(p.items, 0);
  return total == 0 ? Real(0) : 1 / total;
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
