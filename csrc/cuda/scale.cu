// out[r, :] = grad[r, :] * factor[r]: the upstream gradient applied to stored gradient rows.
#include <algorithm>

#include "api.h"
#include "device.h"
#include "memory/rows.cuh"

namespace fastkd {
namespace cuda {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kSlab = int64_t{1} << 14;  // columns of a row that a block works on at a time
constexpr int64_t kMaxRows = 0x7fffffff;     // they are counted in 32 bits
constexpr int kBlocks = 8;                   // of a multiprocessor, which holds so many of 256 threads

// The work items are the slabs of all rows, so that a few long rows fill the device, too.
template <class E>
__global__ void __launch_bounds__(kThreads) scale_kernel(const ScaleParams p) {
  constexpr int kGroup = RowView<E>::kGroup;
  // The usual end of a backward: the loss is what was differentiated, and nothing changes.
  const bool in_place = p.out.data == p.grad.data && p.out.outer_stride == p.grad.outer_stride &&
                        p.out.inner_stride == p.grad.inner_stride;
  if (in_place && p.factor_stride == 0 && *static_cast<const float*>(p.factor) == 1.0f) return;
  const int64_t width = p.grad.columns, slabs = (width + kSlab - 1) / kSlab;
  for (int64_t item = blockIdx.x; item < p.rows * slabs; item += gridDim.x) {
    const int64_t row = item / slabs, slab = item % slabs * kSlab;
    const float factor = static_cast<const float*>(p.factor)[row * p.factor_stride];
    if (in_place && factor == 1.0f) continue;
    const RowIndex index = RowIndex::of(static_cast<unsigned>(row), p.inner);
    const int columns = static_cast<int>(width - slab < kSlab ? width - slab : kSlab);
    RowView<E> out = row_of<E>(p.out, index), grad = row_of<E>(p.grad, index);
    out.data += slab;
    grad.data += slab;
    const int head = elements_to_boundary(out);
    const int first = head ? head - kGroup : 0;
    out.vector_end = vector_end_of(out, first, columns);
    grad.vector_end = vector_end_of(grad, first, columns);
    for (int column = first + static_cast<int>(threadIdx.x) * kGroup; column < columns;
         column += kThreads * kGroup) {
      float x[kGroup];
      grad.unpack(grad.read(column, columns), x);
#pragma unroll
      for (int k = 0; k < kGroup; ++k) x[k] *= factor;
      out.write(column, columns, x);
    }
  }
}

template <class E>
cudaError_t launch_scale(const ScaleParams& params, int device, cudaStream_t stream) {
  const int64_t slabs = (params.grad.columns + kSlab - 1) / kSlab;
  const int64_t blocks = std::min(params.rows * slabs, int64_t{kBlocks} * multiprocessors(device));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, scale_kernel<E>, params);
}

}  // namespace

const char* scale_rows(const ScaleParams& params, int device, void* stream) {
  if (params.wide) return "the CUDA kernels have no float64";
  if (params.rows <= 0 || params.grad.columns <= 0) return nullptr;
  if (params.rows > kMaxRows) return "the CUDA kernels take at most 2^31 - 1 rows";
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return describe(guard.error());
  const auto queue = static_cast<cudaStream_t>(stream);
  switch (params.grad.dtype) {
    case Dtype::kFloat32:
      return describe(launch_scale<Float32>(params, device, queue));
    case Dtype::kBFloat16:
      return describe(launch_scale<BFloat16>(params, device, queue));
    case Dtype::kFloat16:
      return describe(launch_scale<Float16>(params, device, queue));
    default:
      return "the CUDA kernels take float32, bfloat16 and float16 gradients";
  }
}

}  // namespace cuda
}  // namespace fastkd
