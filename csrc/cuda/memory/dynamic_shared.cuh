#pragma once

#include <cuda_runtime.h>

namespace fastkd {
namespace cuda {

// The block's dynamic shared memory: 16-byte aligned, of the size that the launch requested.
__device__ __forceinline__ char* dynamic_shared() {
  extern __shared__ uint4 fastkd_dynamic[];
  return reinterpret_cast<char*>(fastkd_dynamic);
}

}  // namespace cuda
}  // namespace fastkd
