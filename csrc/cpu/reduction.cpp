#include "reduction.h"

#include <algorithm>

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

template <class Real>
void write_totals(const TotalsParams& p) {
  const auto* row_loss = static_cast<const Real*>(p.row_loss);
  const auto* metrics = static_cast<const Real*>(p.metrics);
  const auto* weights = static_cast<const Real*>(p.loss_scale);
  double loss = 0, sum[metric::kCount] = {};
  int64_t count = 0;
  for (int64_t r = 0; row_loss != nullptr && r < p.rows; ++r) loss += row_loss[r];
  for (int64_t r = 0; metrics != nullptr && r < p.rows; ++r) {
    count += weights[r] != 0;
    for (int k = 0; k < metric::kCount; ++k) sum[k] += metrics[r * metric::kCount + k];
  }
  // The inputs are null, too, where there are no rows.
  if (p.loss != nullptr) *static_cast<Real*>(p.loss) = static_cast<Real>(loss);
  if (p.means == nullptr) return;
  auto* means = static_cast<Real*>(p.means);
  const auto divisor = static_cast<double>(std::max<int64_t>(count, 1));
  for (int k = 0; k < metric::kCount; ++k) means[k] = static_cast<Real>(sum[k] / divisor);
  means[metric::kCount] = static_cast<Real>(count);
}

}  // namespace

void row_weights(const WeightParams& params) {
  params.wide ? write_weights<double>(params) : write_weights<float>(params);
}

void totals(const TotalsParams& params) {
  params.wide ? write_totals<double>(params) : write_totals<float>(params);
}

}  // namespace fastkd::cpu
