#include "labels.h"

namespace fastkd::cpu {
namespace {

template <class Real>
Real number_at(const Numbers& numbers, int64_t i) {
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
      return Real(0);
  }
}

template <class Real>
Real one_over(Real x) {
  return x == 0 ? Real(0) : 1 / x;
}

template <class Real>
void write_weights(const WeightParams& p) {
  Real* const weights = static_cast<Real*>(p.weights);
  double sum = 0;
  for (int64_t r = 0; r < p.rows; ++r) {
    const bool ignored = p.labels != nullptr && p.labels[r] == p.ignore_index;
    weights[r] = ignored                           ? Real(0)
                 : p.token_weights.data != nullptr ? number_at<Real>(p.token_weights, r)
                                                   : Real(1);
    sum += weights[r];
  }
  Real factor = static_cast<Real>(p.factor);
  if (p.divisor == WeightParams::Divisor::kSum) factor = one_over(static_cast<Real>(sum));
  if (p.divisor == WeightParams::Divisor::kItems) factor = one_over(number_at<Real>(p.items, 0));
  if (factor == 1) return;
  for (int64_t r = 0; r < p.rows; ++r) weights[r] *= factor;
}

}  // namespace

void row_weights(const WeightParams& params) {
  params.wide ? write_weights<double>(params) : write_weights<float>(params);
}

}  // namespace fastkd::cpu
