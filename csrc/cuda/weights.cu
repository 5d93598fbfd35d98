// The weights of the tokens in a reduction, in one launch.
#include <algorithm>

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

__device__ __forceinline__ float number_at(const Numbers& numbers, int64_t i) {
  switch (numbers.type) {
    case Scalar::kFloat32:
      return static_cast<const float*>(numbers.data)[i];
    case Scalar::kFloat64:
      return static_cast<float>(static_cast<const double*>(numbers.data)[i]);
    case Scalar::kInt64:
      return static_cast<float>(static_cast<const int64_t*>(numbers.data)[i]);
    case Scalar::kInt32:
      return static_cast<float>(static_cast<const int32_t*>(numbers.data)[i]);
    case Scalar::kBool:
      return static_cast<const uint8_t*>(numbers.data)[i] != 0 ? 1.0f : 0.0f;
    default: {
      float x[2];
      const uint32_t word = static_cast<const uint16_t*>(numbers.data)[i];
      if (numbers.type == Scalar::kBFloat16) {
        BFloat16::unpack(word, x);
      } else {
        Float16::unpack(word, x);
      }
      return x[0];
    }
  }
}

// Returns the token's weight before the division, 0 beyond the last token.
__device__ __forceinline__ float weight_at(const WeightParams& p, int64_t row) {
  if (row >= p.rows || (p.labels != nullptr && p.labels[row] == p.ignore_index)) return 0.0f;
  return p.token_weights.data != nullptr ? number_at(p.token_weights, row) : 1.0f;
}

__device__ __forceinline__ float one_over(float x) { return x == 0 ? 0.0f : 1.0f / x; }

__global__ void __launch_bounds__(kMaxThreads) weights_kernel(const WeightParams p) {
  float factor = static_cast<float>(p.factor);
  if (p.divisor == WeightParams::Divisor::kSum) {
    float sum[1] = {0.0f};
    for (int64_t begin = threadIdx.x; begin < p.rows; begin += kPerBlock) {
      float x[kTokens];
#pragma unroll
      for (int k = 0; k < kTokens; ++k) x[k] = weight_at(p, begin + k * kMaxThreads);
#pragma unroll
      for (int k = 0; k < kTokens; ++k) sum[0] += x[k];
    }
    reduce_block<Sum>(sum);
    factor = one_over(sum[0]);
  } else if (p.divisor == WeightParams::Divisor::kItems) {
    factor = one_over(number_at(p.items, 0));
  }
  float* const weights = static_cast<float*>(p.weights);
  for (int64_t begin = blockIdx.x * kPerBlock + threadIdx.x; begin < p.rows; begin += gridDim.x * kPerBlock) {
    float x[kTokens];
#pragma unroll
    for (int k = 0; k < kTokens; ++k) x[k] = weight_at(p, begin + k * kMaxThreads) * factor;
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
