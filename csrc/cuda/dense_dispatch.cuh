// From the dtypes of a call to the kernel; what each dense_<divergence>.cu instantiates.
#pragma once

#include <algorithm>

#include "dense_kernel.cuh"

namespace fastkd {
namespace cuda {

// Enough threads for about four groups each, so that a short vocabulary does not leave most of a block idle.
inline unsigned threads_for(int vocab, unsigned most) {
  unsigned threads = 2 * kWarp;
  while (threads < most && threads * 32 < static_cast<unsigned>(vocab)) threads *= 2;
  return threads;
}

template <class D, class S, class T, bool kExtra>
cudaError_t launch_dense_kernel(const DenseArgs& args, const D& divergence, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(std::min<int64_t>(args.rows, 0x7fffffff)));
  config.blockDim = dim3(threads_for(args.vocab, BlockShape<D, kExtra>::kThreads));
  config.stream = stream;
  return cudaLaunchKernelEx(&config, dense_kernel<D, S, T, kExtra>, args, divergence);
}

template <class D, class S, class T>
cudaError_t launch_dense_typed(const DenseArgs& args, const D& divergence, cudaStream_t stream) {
  // A sparse teacher's calls are in phases always.
  if constexpr (!std::is_same<D, OffSupport>::value) {
    if (!has_extras(args)) return launch_dense_kernel<D, S, T, false>(args, divergence, stream);
  }
  return launch_dense_kernel<D, S, T, true>(args, divergence, stream);
}

template <class D, class S>
cudaError_t launch_dense_student(const DenseArgs& args, const D& divergence, cudaStream_t stream) {
  // Without a teacher its type is of no account.
  if constexpr (!DenseRow<D, S, S, false>::kTeacher) {
    return launch_dense_typed<D, S, S>(args, divergence, stream);
  } else {
    switch (args.teacher.dtype) {
      case Dtype::kFloat32:
        return launch_dense_typed<D, S, Float32>(args, divergence, stream);
      case Dtype::kBFloat16:
        return launch_dense_typed<D, S, BFloat16>(args, divergence, stream);
      case Dtype::kFloat16:
        return launch_dense_typed<D, S, Float16>(args, divergence, stream);
      default:
        return cudaErrorInvalidValue;
    }
  }
}

template <class D>
cudaError_t launch_dense(const DenseArgs& args, const D& divergence, cudaStream_t stream) {
  switch (args.student.dtype) {
    case Dtype::kFloat32:
      return launch_dense_student<D, Float32>(args, divergence, stream);
    case Dtype::kBFloat16:
      return launch_dense_student<D, BFloat16>(args, divergence, stream);
    case Dtype::kFloat16:
      return launch_dense_student<D, Float16>(args, divergence, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace cuda
}  // namespace fastkd
