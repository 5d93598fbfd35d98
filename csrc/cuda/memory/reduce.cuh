// Sums and maxima over a block, in an order that the block's size determines: every run gives the same bits.
#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <cmath>

namespace fastkd {
namespace cuda {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 512;

struct Sum {
  using Value = float;
  static constexpr float kNeutral = 0.0f;
  static __device__ __forceinline__ float combine(float a, float b) { return a + b; }
};

struct Max {  // ignores NaN, which shows in the sums of exponentials
  using Value = float;
  static constexpr float kNeutral = -INFINITY;
  static __device__ __forceinline__ float combine(float a, float b) { return fmaxf(a, b); }
};

struct First {  // the smallest column
  using Value = int;
  static constexpr int kNeutral = INT_MAX;
  static __device__ __forceinline__ int combine(int a, int b) { return a < b ? a : b; }
};

template <class Op, int kCount>
__device__ __forceinline__ void reduce_warp(typename Op::Value (&x)[kCount]) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = Op::combine(x[i], __shfl_xor_sync(0xffffffffu, x[i], distance));
  }
}

// Replaces each x[i] by its reduction over the block, in every thread. Ends with a barrier.
template <class Op, int kCount>
__device__ __forceinline__ void reduce_block(typename Op::Value (&x)[kCount]) {
  __shared__ typename Op::Value of_warp[kCount][kMaxThreads / kWarp];
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  reduce_warp<Op>(x);
  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) of_warp[i][warp] = x[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) x[i] = lane < warps ? of_warp[i][lane] : Op::kNeutral;
  reduce_warp<Op>(x);
  __syncthreads();  // before the next call writes of_warp
}

}  // namespace cuda
}  // namespace fastkd
