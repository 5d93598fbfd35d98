// The parts of CUDA that fastkd's kernels use, on a CPU, so that a plain C++ compiler can build and run the
// .cu files. machine/ runs the threads of a cluster as fibers, in an order that `emulation::schedule` states,
// and reports what is wrong under any order. The sources are translated first, see
// tests/support/cuda_translation.py: their asm statements run in the PTX interpreter.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "machine/cluster.h"
#include "machine/launch.h"
#include "machine/numbers.h"
#include "machine/ptx.h"
#include "machine/shared_memory.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

inline float __fdividef(float x, float y) { return emulation::divide_approx(x, y); }

// This comes behind what its translated statements use.
#include "csrc/cpu/simd/half.h"

using std::max;
using std::min;

inline uint32_t __cvta_generic_to_shared(const void* address) { return emulation::shared_address(address); }
inline void* __cvta_shared_to_generic(size_t address) { return emulation::at_shared_address(address); }
inline uint64_t __cvta_generic_to_global(const void* address) { return reinterpret_cast<uint64_t>(address); }

inline void __syncthreads() { emulation::cluster->sync_block(); }

inline uint32_t __shfl_xor_sync(unsigned mask, uint32_t x, int lane_mask) {
  if (mask != 0xffffffffu) emulation::fail("a shuffle without all lanes, which the emulation does not know");
  return emulation::cluster->shuffle(x, static_cast<unsigned>(lane_mask));
}
inline int __shfl_xor_sync(unsigned mask, int x, int lane_mask) {
  return static_cast<int>(__shfl_xor_sync(mask, static_cast<uint32_t>(x), lane_mask));
}
inline float __shfl_xor_sync(unsigned mask, float x, int lane_mask) {
  return fastkd::float_of(__shfl_xor_sync(mask, fastkd::bits_of(x), lane_mask));
}

inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }

struct float2 {
  float x, y;
};
// Copying one is a vector access, which is checked. Its elements are not copied one by one elsewhere.
struct alignas(4) uint4 {
  uint32_t x, y, z, w;

  uint4() = default;
  uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) : x(x), y(y), z(z), w(w) {}
  uint4(const uint4& from) {
    emulation::on_vector_read(&from);
    x = from.x, y = from.y, z = from.z, w = from.w;
  }
  uint4& operator=(const uint4& from) {
    emulation::on_vector_read(&from);
    emulation::on_vector_write(this);
    x = from.x, y = from.y, z = from.z, w = from.w;
    return *this;
  }
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline void __stcs(uint4* to, const uint4& x) { *to = x; }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline float __uint_as_float(uint32_t bits) { return fastkd::float_of(bits); }
inline uint32_t __float_as_uint(float x) { return fastkd::bits_of(x); }
inline float __int_as_float(int bits) { return fastkd::float_of(static_cast<uint32_t>(bits)); }
inline int __float_as_int(float x) { return static_cast<int>(fastkd::bits_of(x)); }

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorInvalidConfiguration };
enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrReservedSharedMemoryPerBlock,
  cudaDevAttrMultiProcessorCount
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize,
  cudaFuncAttributePreferredSharedMemoryCarveout,
  cudaFuncAttributeNonPortableClusterSizeAllowed
};
constexpr int cudaSharedmemCarveoutMaxShared = 100;
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
using cudaStream_t = struct Stream*;
struct cudaFuncAttributes {
  size_t sharedSizeBytes;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    dim3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
// The values of an H100.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  constexpr int kValues[] = {9, 0, emulation::kSharedPerBlock, 233472, 1024, emulation::kMultiprocessors};
  return *value = kValues[which], cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) {
  static const char* const kNames[] = {"no error", "invalid argument", "invalid configuration argument"};
  return kNames[error];
}

template <class... Parameters>
emulation::Kernel& emulated(void (*kernel)(Parameters...)) {
  return emulation::kernel_at(reinterpret_cast<const void*>(kernel));
}

// Here it is known only afterwards how many bytes a kernel's variables have; launch() checks that they are
// no more.
template <class KernelFunction>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* out, KernelFunction) {
  return out->sharedSizeBytes = emulation::kDeclaredBytes, cudaSuccess;
}

template <class KernelFunction>
cudaError_t cudaFuncSetAttribute(KernelFunction kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value < 0 || static_cast<size_t>(value) > emulation::kSharedPerBlock) return cudaErrorInvalidValue;
    emulated(kernel).allowed_dynamic_bytes = value;
  } else if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    emulated(kernel).non_portable_cluster = value != 0;
  }
  return cudaSuccess;
}

// Few of the usual clusters, so that each takes more than one row; of the largest ones, whose number decides
// whether they are taken, as many as a whole device runs.
template <class KernelFunction>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, KernelFunction, const cudaLaunchConfig_t* config) {
  const bool portable = config->attrs->val.clusterDim.x <= emulation::kPortableCluster;
  return *clusters = portable ? emulation::clusters_at_once : emulation::kMultiprocessors, cudaSuccess;
}

template <class... Declared, class... Given>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Declared...),
                               const Given&... args) {
  const unsigned blocks = config->numAttrs ? config->attrs->val.clusterDim.x : 1;
  const emulation::Shape shape{config->gridDim, config->blockDim, blocks, config->dynamicSmemBytes};
  const bool started = emulation::launch(emulated(kernel), shape, [&] { kernel(args...); });
  return started ? cudaSuccess : cudaErrorInvalidValue;
}
