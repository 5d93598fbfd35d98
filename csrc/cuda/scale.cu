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
constexpr int64_t kMaxGridX = 0x7fffffff, kMaxGridY = 0xffff;

// blockIdx.x counts rows, blockIdx.y slabs of columns, so that a few long rows fill the device, too.
template <class E>
__global__ void __launch_bounds__(kThreads) scale_kernel(const ScaleParams p) {
  constexpr int kGroup = RowView<E>::kGroup;
  using Bits = typename E::Bits;
  for (int64_t index = blockIdx.x; index < p.rows; index += gridDim.x) {
    const float factor = static_cast<const float*>(p.factor)[index * p.factor_stride];
    Bits* out_row = static_cast<Bits*>(p.out) + index * p.out_stride;
    const Bits* grad_row = static_cast<const Bits*>(p.grad) + index * p.grad_stride;
    if (factor == 1.0f && out_row == grad_row) continue;
    for (int64_t slab = blockIdx.y * kSlab; slab < p.columns; slab += gridDim.y * kSlab) {
      const int columns = static_cast<int>(p.columns - slab < kSlab ? p.columns - slab : kSlab);
      RowView<E> out{out_row + slab, 1, 0};
      RowView<E> grad{const_cast<Bits*>(grad_row) + slab, 1, 0};
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
}

template <class E>
cudaError_t launch_scale(const ScaleParams& params, cudaStream_t stream) {
  const int64_t slabs = (params.columns + kSlab - 1) / kSlab;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(std::min(params.rows, kMaxGridX)),
                        static_cast<unsigned>(std::min(slabs, kMaxGridY)));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, scale_kernel<E>, params);
}

}  // namespace

const char* scale_rows(const ScaleParams& params, int device, void* stream) {
  if (params.wide) return "the CUDA kernels have no float64";
  if (params.rows <= 0 || params.columns <= 0) return nullptr;
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return describe(guard.error());
  const auto queue = static_cast<cudaStream_t>(stream);
  switch (params.dtype) {
    case Dtype::kFloat32:
      return describe(launch_scale<Float32>(params, queue));
    case Dtype::kBFloat16:
      return describe(launch_scale<BFloat16>(params, queue));
    case Dtype::kFloat16:
      return describe(launch_scale<Float16>(params, queue));
    default:
      return "the CUDA kernels take float32, bfloat16 and float16 gradients";
  }
}

}  // namespace cuda
}  // namespace fastkd
