#include "labels.h"

#include "../weights.h"
#include "simd/half.h"

namespace fastkd::cpu {
namespace {

struct Half {
  static float number(uint16_t bits, bool bf16) { return bf16 ? from_bf16(bits) : from_f16(bits); }
};

template <class Real>
void write_weights(const WeightParams& p) {
  Real* const weights = static_cast<Real*>(p.weights);
  double sum = 0;
  for (int64_t r = 0; r < p.rows; ++r) sum += weights[r] = weight_at<Real, Half>(p, r);
  const Real factor = weight_factor<Real, Half>(p, static_cast<Real>(sum));
  if (factor == 1) return;
  for (int64_t r = 0; r < p.rows; ++r) weights[r] *= factor;
}

}  // namespace

void row_weights(const WeightParams& params) {
  params.wide ? write_weights<double>(params) : write_weights<float>(params);
}

}  // namespace fastkd::cpu
