// From the dtypes of a call to the kernel; what each dense_<divergence>.cu instantiates.
#pragma once

#include "dense_kernel.cuh"

namespace fastkd {
namespace cuda {

// Enough threads for about four groups each, so that a short vocabulary does not leave most of a block idle.
inline unsigned threads_for(int vocab, unsigned most) {
  unsigned threads = 2 * kWarp;
  while (threads < most && threads * 32 < static_cast<unsigned>(vocab)) threads *= 2;
  return threads < most ? threads : most;
}

template <class E, class D>
cudaError_t launch_dense_kernel(const DenseArgs& args, const D& divergence, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(args.rows));
  config.blockDim = dim3(threads_for(args.vocab, BlockShape<D, E>::kThreads));
  config.stream = stream;
  return cudaLaunchKernelEx(&config, dense_kernel<D, E>, args, divergence);
}

// Calls with one type on both sides and no extras have a kernel for that type; one for all types takes the
// rest. More kernels would compile for minutes.
template <class D>
cudaError_t launch_dense(const DenseArgs& args, const D& divergence, cudaStream_t stream) {
  using AnyRow = DenseRow<D, AnyElement>;
  // A sparse teacher's calls are in phases always.
  if constexpr (!AnyRow::kSparse) {
    const bool alike = !AnyRow::kTeacher || args.student.dtype == args.teacher.dtype;
    if (alike && !has_extras(args)) {
      switch (args.student.dtype) {
        case Dtype::kFloat32:
          return launch_dense_kernel<Float32>(args, divergence, stream);
        case Dtype::kBFloat16:
          return launch_dense_kernel<BFloat16>(args, divergence, stream);
        case Dtype::kFloat16:
          return launch_dense_kernel<Float16>(args, divergence, stream);
        default:
          return cudaErrorInvalidValue;
      }
    }
  }
  return launch_dense_kernel<AnyElement>(args, divergence, stream);
}

}  // namespace cuda
}  // namespace fastkd
