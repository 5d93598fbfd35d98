// Powers of two and the shifts that keep them in range.
#pragma once

#include <cmath>

#include "../../divergences/functor.h"

namespace fastkd {
namespace cuda {

constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.693147181f;
// Rows whose maxima are this close (in powers of 2) share one shift, which makes their exponentials
// comparable.
constexpr float kSharedShiftRange = 16.0f;

// If the exponent of 2 of a row maximum exceeds kFarFromZero, float32 has too few digits for the differences
// of the logits; if those of the two sides differ by more than kFarApart, it has too few for the log-ratios.
constexpr float kFarFromZero = 8192.0f, kFarApart = 32.0f;

// 2^x to 2 ulp, equal for equal arguments. Subnormal results become 0; Entry's products treat them as 0
// anyway.
__device__ __forceinline__ float exp2_fast(float x) { return exp2_any(x); }

// Returns what can be subtracted from a row: its maximum, or 0 where it has no finite logit.
__device__ __forceinline__ float finite(float max) { return max == -INFINITY ? 0.0f : max; }

// Returns a row maximum, or -inf where its exponent of 2 is -inf: logits that low count as masked.
__device__ __forceinline__ float anchor_of(float max, float log2_scale) {
  return __fmul_rn(max, log2_scale) == -INFINITY ? -INFINITY : max;
}

// Returns the shift of a row whose maximum is `max`; 0 where the row has none, so that -inf - shift stays
// -inf.
__device__ __forceinline__ float shift_of(float max, float log2_scale) {
  const float shift = __fmul_rn(max, log2_scale);
  return shift == -INFINITY ? 0.0f : shift;
}

// Returns the exponent of 2 that moves sums to another shift; 0 for a part of a row without finite logits,
// whose sums are 0.
__device__ __forceinline__ float change_of(float max, float from, float to) {
  return max == -INFINITY ? 0.0f : from - to;
}

}  // namespace cuda
}  // namespace fastkd
