// Sums and maxima over a block, in an order fixed by the block's size: the same bits on every run.
#pragma once

#include <cuda_runtime.h>

#include <cmath>

namespace fastkd {
namespace cuda {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 512;

struct Sum {
  static constexpr float kNeutral = 0.0f;
  static __device__ __forceinline__ float combine(float a, float b) { return a + b; }
};

struct Max {  // of the numbers: NaN is passed over, the sums of exponentials bring it up
  static constexpr float kNeutral = -INFINITY;
  static __device__ __forceinline__ float combine(float a, float b) { return fmaxf(a, b); }
};

template <class Op, int kCount>
__device__ __forceinline__ void reduce_warp(float (&x)[kCount]) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = Op::combine(x[i], __shfl_xor_sync(0xffffffffu, x[i], distance));
  }
}

// Each x[i] becomes its reduction over the block, in every thread. Ends with a barrier.
template <class Op, int kCount>
__device__ __forceinline__ void reduce_block(float (&x)[kCount]) {
  __shared__ float of_warp[kCount][kMaxThreads / kWarp];
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
  __syncthreads();  // before of_warp is written again
}

}  // namespace cuda
}  // namespace fastkd
