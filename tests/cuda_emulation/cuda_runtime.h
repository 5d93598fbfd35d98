// As much of CUDA as fastkd's kernels use, on a CPU, so that a plain C++ compiler can build and run the .cu
// files. The threads of a block are fibers that take turns: each runs to its next barrier or shuffle before
// any runs on.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#include "../../csrc/cpu/half.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one after another

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(64 << 10);
  bool done = false;
  const char* waiting_at = nullptr;
  unsigned shuffles = 0;
};

inline ucontext_t scheduler;
inline std::vector<std::unique_ptr<Fiber>> fibers;
inline std::function<void()> kernel;
// Two, so that a fast fiber does not overwrite what a slow one has yet to read.
inline uint32_t shuffled[2][1024];
inline bool backwards = false;  // the order in which fibers take turns: results must not depend on it

inline void wait_at(const char* what) {
  Fiber& self = *fibers[threadIdx.x];
  self.waiting_at = what;
  swapcontext(&self.context, &scheduler);
}

inline void run_fiber() {
  kernel();
  fibers[threadIdx.x]->done = true;
  wait_at("the end");
}

inline void run_block() {
  fibers.resize(blockDim.x);
  for (auto& fiber : fibers) {
    if (!fiber) fiber = std::make_unique<Fiber>();
    fiber->done = false;
    fiber->shuffles = 0;
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack.data();
    fiber->context.uc_stack.ss_size = fiber->stack.size();
    fiber->context.uc_link = nullptr;
    makecontext(&fiber->context, run_fiber, 0);
  }
  while (!fibers[0]->done) {
    for (unsigned i = 0; i < blockDim.x; ++i) {
      threadIdx.x = backwards ? blockDim.x - 1 - i : i;
      swapcontext(&scheduler, &fibers[threadIdx.x]->context);
    }
    for (const auto& fiber : fibers) {
      if (fiber->waiting_at != fibers[0]->waiting_at) {
        std::fprintf(stderr, "threads of one block wait at %s and at %s\n", fiber->waiting_at,
                     fibers[0]->waiting_at);
        std::abort();
      }
    }
  }
}

}  // namespace emulation

inline void __syncthreads() { emulation::wait_at("a barrier"); }

inline uint32_t __shfl_xor_sync(unsigned, uint32_t x, int distance) {
  const unsigned self = threadIdx.x, turn = emulation::fibers[self]->shuffles++ % 2;
  emulation::shuffled[turn][self] = x;
  emulation::wait_at("a shuffle");
  return emulation::shuffled[turn][self ^ distance];
}
inline int __shfl_xor_sync(unsigned mask, int x, int distance) {
  return static_cast<int>(__shfl_xor_sync(mask, static_cast<uint32_t>(x), distance));
}
inline float __shfl_xor_sync(unsigned mask, float x, int distance) {
  return fastkd::float_of(__shfl_xor_sync(mask, fastkd::bits_of(x), distance));
}

inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }

struct float2 {
  float x, y;
};
struct uint4 {
  uint32_t x, y, z, w;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline void __stcs(uint4* to, uint4 x) { *to = x; }
inline float __uint_as_float(uint32_t bits) { return fastkd::float_of(bits); }
inline uint32_t __float_as_uint(float x) { return fastkd::bits_of(x); }

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor };
using cudaStream_t = struct Stream*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream;
};

inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 9, cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "an error"; }

template <class... Declared, class... Given>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Declared...),
                               const Given&... args) {
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  emulation::kernel = [&] { kernel(args...); };
  for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y) {
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) emulation::run_block();
  }
  return cudaSuccess;
}
