// The second sweep: the sums of a divergence that are over probabilities, and therefore need both normalisers
// first.
#pragma once

#include "row.cuh"

namespace fastkd {
namespace cuda {

// Runs the sweep, and sends the sums of each warp.
template <class Context>
__device__ __forceinline__ Packets send_sums(const Context& row) {
  constexpr int kGroup = Context::kGroup;
  float sum[kMaxSums] = {0, 0};
#pragma unroll 1
  for (int g = row.begin + threadIdx.x; g < row.end; g += blockDim.x) {
    float s[kGroup], t[kGroup], log[kGroup];
    row.load(row.first + g * kGroup, s, t);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      const Entry<float> e = row.entry(s[k], t[k]);
      row.functor.sums(e, sum);
      if constexpr (Context::kKeeps) log[k] = row.functor.stored(e);
    }
    if constexpr (Context::kKeeps) {
      if (row.call.keeps_logs) row.keep(row.first + g * kGroup, log);
    }
  }
  if constexpr (Context::kKeeps) {
    if (row.call.keeps_logs) row.place.show_writes();
  }
  return send_reductions<Sum>(row.place, sum);
}

// Adds up what send_sums() has sent.
template <class Context>
__device__ __forceinline__ void add_sums(Context& row, const Packets& packets) {
  float sum[kMaxSums];
  reduce_packets<Sum>(packets, sum);
  row.divergence.sum[0] = sum[0];
  row.divergence.sum[1] = sum[1];
}

// Sets log2 of the normalisers, for a divergence with distant rows.
template <class Context>
__device__ __forceinline__ void find_log2_normalisers(Context& row) {
  row.divergence.bits_s = -log2f(row.inverse_z_s);
  row.divergence.bits_t = -log2f(row.inverse_z_t);
}

// The additional sweep for rows that share little probability, see Functor::kDistant.
template <class Context>
__device__ __forceinline__ void find_distant_sums(Context& row) {
  constexpr int kGroup = Context::kGroup;
  Row<float>& sums = row.divergence;
  sums.distant = true;
  float top[1] = {-INFINITY};
#pragma unroll 1
  for (int g = row.begin + threadIdx.x; g < row.end; g += blockDim.x) {
    float s[kGroup], t[kGroup];
    row.load(row.first + g * kGroup, s, t);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      top[0] = fmaxf(top[0], row.functor.distant_exponent(row.entry(s[k], t[k]), sums));
    }
  }
  reduce_row<Max>(row.place, top);
  sums.sum[0] = sums.sum[1] = top[0];
  if (top[0] == -INFINITY) return;
  float sum[kMaxSums] = {0, 0};
#pragma unroll 1
  for (int g = row.begin + threadIdx.x; g < row.end; g += blockDim.x) {
    float s[kGroup], t[kGroup];
    row.load(row.first + g * kGroup, s, t);
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      row.functor.distant_sums(row.entry(s[k], t[k]), sums, top[0], sum);
    }
  }
  reduce_row<Sum>(row.place, sum);
  sums.sum[0] += log2f(sum[0]);
  sums.sum[1] += log2f(sum[1]);
}

}  // namespace cuda
}  // namespace fastkd
