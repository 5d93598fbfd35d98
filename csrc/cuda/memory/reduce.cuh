// Sums and maxima over a block, in an order that the block's size determines: every run gives the same bits.
#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace fastkd {
namespace cuda {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 512;
constexpr int kMaxWarps = kMaxThreads / kWarp;

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

struct SumOfDoubles {
  using Value = double;
  static constexpr double kNeutral = 0.0;
  static __device__ __forceinline__ double combine(double a, double b) { return a + b; }
};

struct MaxOfDoubles {  // ignores NaN, too
  using Value = double;
  static constexpr double kNeutral = -INFINITY;
  static __device__ __forceinline__ double combine(double a, double b) { return fmax(a, b); }
};

struct First {  // the smallest column
  using Value = int;
  static constexpr int kNeutral = INT_MAX;
  static __device__ __forceinline__ int combine(int a, int b) { return a < b ? a : b; }
};

// Returns x of the lane whose number differs in the bits of `distance`. A shuffle moves 32 bits.
template <class Value>
__device__ __forceinline__ Value from_lane(Value x, int distance) {
  if constexpr (sizeof(Value) == sizeof(uint32_t)) {
    return __shfl_xor_sync(0xffffffffu, x, distance);
  } else {
    uint32_t word[sizeof(Value) / sizeof(uint32_t)];
    memcpy(word, &x, sizeof(x));
    for (uint32_t& one : word) one = __shfl_xor_sync(0xffffffffu, one, distance);
    memcpy(&x, word, sizeof(x));
    return x;
  }
}

// Replaces each x[i] by its reduction over neighbouring lanes, as many as `kLanes`, a power of 2.
template <class Op, int kLanes = kWarp, int kCount>
__device__ __forceinline__ void reduce_lanes(typename Op::Value (&x)[kCount]) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = Op::combine(x[i], from_lane(x[i], distance));
  }
}

// Replaces each x[i] by its reduction over the block, in every thread. Ends with a barrier.
template <class Op, int kCount>
__device__ __forceinline__ void reduce_block(typename Op::Value (&x)[kCount]) {
  __shared__ typename Op::Value of_warp[kCount][kMaxWarps];
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  reduce_lanes<Op>(x);
  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) of_warp[i][warp] = x[i];
  }
  __syncthreads();
  // Both halves of a warp read the warps' results, so that a step less suffices.
  const unsigned from = lane % kMaxWarps;
#pragma unroll
  for (int i = 0; i < kCount; ++i) x[i] = from < warps ? of_warp[i][from] : Op::kNeutral;
  reduce_lanes<Op, kMaxWarps>(x);
  __syncthreads();  // before the next call writes of_warp
}

}  // namespace cuda
}  // namespace fastkd
