// The second sweep: the sums of a divergence that needs both log-sum-exps first.
#pragma once

#include "../memory/reduce.cuh"
#include "row.cuh"

namespace fastkd {
namespace cuda {

// The second sweep, for divergences that need both log-sum-exps first.
template <class AnyRow>
__device__ __forceinline__ void find_sums(AnyRow& r) {
  constexpr int kGroup = AnyRow::kGroup;
  float sum[kMaxSums] = {0, 0};
#pragma unroll 1
  for (int g = r.begin + threadIdx.x; g < r.end; g += blockDim.x) {
    float s[kGroup], t[kGroup];
    r.load(r.first + g * kGroup, s, t);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) r.divergence.sums(r.entry(s[k], t[k]), sum);
  }
  r.place.template reduce<Sum>(sum);
  r.row.divergence.sum[0] = sum[0];
  r.row.divergence.sum[1] = sum[1];
}

// Sets log2 of the sums of exponentials, for a divergence with distant rows.
template <class AnyRow>
__device__ __forceinline__ void find_bits(AnyRow& r) {
  r.row.divergence.bits_s = -log2f(r.row.s_inverse);
  r.row.divergence.bits_t = -log2f(r.row.t_inverse);
}

// The additional sweep for rows that share little probability, see Functor::kDistant.
template <class AnyRow>
__device__ __forceinline__ void find_distant_sums(AnyRow& r) {
  constexpr int kGroup = AnyRow::kGroup;
  auto& found = r.row.divergence;
  found.distant = true;
  float top[1] = {-INFINITY};
#pragma unroll 1
  for (int g = r.begin + threadIdx.x; g < r.end; g += blockDim.x) {
    float s[kGroup], t[kGroup];
    r.load(r.first + g * kGroup, s, t);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      top[0] = fmaxf(top[0], r.divergence.distant_exponent(r.entry(s[k], t[k]), found));
    }
  }
  r.place.template reduce<Max>(top);
  found.sum[0] = found.sum[1] = top[0];
  if (top[0] == -INFINITY) return;
  float sum[kMaxSums] = {0, 0};
#pragma unroll 1
  for (int g = r.begin + threadIdx.x; g < r.end; g += blockDim.x) {
    float s[kGroup], t[kGroup];
    r.load(r.first + g * kGroup, s, t);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      r.divergence.distant_sums(r.entry(s[k], t[k]), found, top[0], sum);
    }
  }
  r.place.template reduce<Sum>(sum);
  found.sum[0] += log2f(sum[0]);
  found.sum[1] += log2f(sum[1]);
}

}  // namespace cuda
}  // namespace fastkd
