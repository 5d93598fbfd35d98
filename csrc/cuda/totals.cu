// The sum of the losses and the means of the metrics, in one launch.
#include "api.h"
#include "device.h"
#include "memory/reduce.cuh"

namespace fastkd {
namespace cuda {

namespace {

// Rows that a thread reads at a time: the reads of one row would each wait for the one before.
constexpr int kRows = 4;
constexpr int kCount = metric::kCount;

// One block, since several would have to wait for each other, or add in any order.
__global__ void __launch_bounds__(kMaxThreads) totals_kernel(const TotalsParams p) {
  const auto* row_loss = static_cast<const float*>(p.row_loss);
  const auto* metrics = static_cast<const float*>(p.metrics);
  const auto* weights = static_cast<const float*>(p.loss_scale);
  float sum[kCount + 2] = {};  // of the metrics, the rows that count, and the losses
  for (int64_t begin = threadIdx.x; begin < p.rows; begin += int64_t{kRows} * kMaxThreads) {
    float x[kRows][kCount + 2];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int64_t row = begin + i * kMaxThreads;
      const bool there = row < p.rows;
#pragma unroll
      for (int k = 0; k < kCount; ++k) x[i][k] = there && metrics ? metrics[row * kCount + k] : 0.0f;
      x[i][kCount] = there && metrics && weights[row] != 0 ? 1.0f : 0.0f;
      x[i][kCount + 1] = there && row_loss ? row_loss[row] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int k = 0; k < kCount + 2; ++k) sum[k] += x[i][k];
    }
  }
  reduce_block<Sum>(sum);
  if (threadIdx.x != 0) return;
  // The inputs are null, too, where there are no rows.
  if (p.loss) *static_cast<float*>(p.loss) = sum[kCount + 1];
  if (!p.means) return;
  auto* const means = static_cast<float*>(p.means);
  const float count = sum[kCount];
  for (int k = 0; k < kCount; ++k) means[k] = sum[k] / (count < 1 ? 1.0f : count);
  means[kCount] = count;
}

}  // namespace

const char* totals(const TotalsParams& params, int device, void* stream) {
  if (params.wide) return "the CUDA kernels have no float64";
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return describe(guard.error());
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1);
  config.blockDim = dim3(kMaxThreads);
  config.stream = static_cast<cudaStream_t>(stream);
  return describe(cudaLaunchKernelEx(&config, totals_kernel, params));
}

}  // namespace cuda
}  // namespace fastkd
