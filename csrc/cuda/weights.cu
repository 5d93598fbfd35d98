// The weights of the tokens in a reduction, in one launch.
#include <algorithm>

#include "../weights.h"
#include "api.h"
#include "device.h"
#include "memory/elements.cuh"
#include "memory/reduce.cuh"

namespace fastkd {
namespace cuda {

namespace {

// Tokens that a thread reads at a time: the reads of one token would each wait for the one before.
constexpr int kTokens = 8;
constexpr int64_t kPerBlock = int64_t{kMaxThreads} * kTokens;
constexpr int64_t kMaxBlocks = 1024;

struct Half {
  static __device__ __forceinline__ float number(uint16_t bits, bool bf16) {
    float x[2];
    if (bf16) {
      BFloat16::unpack(bits, x);
    } else {
      Float16::unpack(bits, x);
    }
    return x[0];
  }
};

// Returns the token's weight before the division, 0 beyond the last token.
__device__ __forceinline__ float weight_or_0(const WeightParams& p, int64_t row) {
  return row < p.rows ? weight_at<float, Half>(p, row) : 0.0f;
}

__global__ void __launch_bounds__(kMaxThreads) weights_kernel(const WeightParams p) {
  float sum[1] = {0.0f};
  if (p.divisor == WeightParams::Divisor::kSum) {
    for (int64_t begin = threadIdx.x; begin < p.rows; begin += kPerBlock) {
      float x[kTokens];
#pragma unroll
      for (int k = 0; k < kTokens; ++k) x[k] = weight_or_0(p, begin + k * kMaxThreads);
#pragma unroll
      for (int k = 0; k < kTokens; ++k) sum[0] += x[k];
    }
    reduce_block<Sum>(sum);
  }
  const float factor = weight_factor<float, Half>(p, sum[0]);
  float* const weights = static_cast<float*>(p.weights);
  for (int64_t begin = blockIdx.x * kPerBlock + threadIdx.x; begin < p.rows; begin += gridDim.x * kPerBlock) {
    float x[kTokens];
#pragma unroll
    for (int k = 0; k < kTokens; ++k) x[k] = weight_or_0(p, begin + k * kMaxThreads) * factor;
#pragma unroll
    for (int k = 0; k < kTokens; ++k) {
      const int64_t row = begin + k * kMaxThreads;
      if (row < p.rows) weights[row] = x[k];
    }
  }
}

}  // namespace

const char* row_weights(const WeightParams& params, int device, void* stream) {
  if (params.wide) return "the CUDA kernels have no float64";
  if (params.rows <= 0) return nullptr;
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return describe(guard.error());
  // The sum of all tokens takes one block: several would have to wait for each other.
  const bool alone = params.divisor == WeightParams::Divisor::kSum;
  const int64_t blocks = std::min((params.rows + kPerBlock - 1) / kPerBlock, kMaxBlocks);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(alone ? 1u : static_cast<unsigned>(blocks));
  config.blockDim = dim3(kMaxThreads);
  config.stream = static_cast<cudaStream_t>(stream);
  return describe(cudaLaunchKernelEx(&config, weights_kernel, params));
}

}  // namespace cuda
}  // namespace fastkd
