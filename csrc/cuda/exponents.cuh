// Powers of two and the shifts that keep them in range.
#pragma once

#include <cmath>

#include "../divergences/entry.h"

namespace fastkd {
namespace cuda {

constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.693147181f;
// Rows whose maxima are this close (in powers of 2) share one shift: their exponentials are then comparable.
constexpr float kSharedShiftRange = 16.0f;

// Where a largest logit has an exponent of 2 beyond the first, float32 has too few digits for what the logits
// differ by; where those of the two sides lie the second apart, for the ratios.
constexpr float kFarFromZero = 8192.0f, kFarApart = 32.0f;

// 2^x to 2 ulp, equal for equal arguments. Subnormal results become 0, as Entry's products take them anyway.
__device__ __forceinline__ float exp2_fast(float x) { return exp2_any(x); }

// What a row can be moved by: 0 where it has no finite logit.
__device__ __forceinline__ float finite(float max) { return max == -INFINITY ? 0.0f : max; }

// A largest logit, or -inf where its exponent of 2 is: what is so low counts as masked.
__device__ __forceinline__ float anchor_of(float max, float to_log2) {
  return __fmul_rn(max, to_log2) == -INFINITY ? -INFINITY : max;
}

// The shift of a row whose largest logit is `max`; 0 where there is none, so that -inf - shift stays -inf.
__device__ __forceinline__ float shift_of(float max, float to_log2) {
  const float shift = __fmul_rn(max, to_log2);
  return shift == -INFINITY ? 0.0f : shift;
}

// The exponent of 2 that moves sums to another shift; 0 for a part without finite logits, whose sums are 0.
__device__ __forceinline__ float change_of(float max, float from, float to) {
  return max == -INFINITY ? 0.0f : from - to;
}

}  // namespace cuda
}  // namespace fastkd
