// The parts of CUDA that fastkd's kernels use, on a CPU, so that a plain C++ compiler can build and run the
// .cu files. The threads of a block are fibers that run in turn: each runs to its next barrier or shuffle
// before any continues. The blocks of a cluster are threads of the operating system, each with shared memory
// of its own.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "../../../csrc/cpu/simd/half.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static thread_local  // the blocks of a thread run one after another

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;
using std::max;
using std::min;

namespace emulation {

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(64 << 10);
  bool done = false;
  const char* waiting_at = nullptr;
  unsigned shuffles = 0;
};

// The blocks of a cluster, which run together.
struct Cluster {
  explicit Cluster(unsigned size) : shared_bases(size) {}

  std::vector<char*> shared_bases;  // the address of the same variable in each block's shared memory

  void meet() {
    std::unique_lock<std::mutex> lock(mutex_);
    const unsigned round = round_;
    if (++waiting_ == shared_bases.size()) {
      waiting_ = 0, ++round_;
      all_here_.notify_all();
    } else {
      all_here_.wait(lock, [&] { return round_ != round; });
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_here_;
  unsigned waiting_ = 0, round_ = 0;
};

struct Copy {
  void* to;
  const void* from;
  uint32_t bytes;
};

// The copies that a copy engine has yet to do. Each is done when a thread waits for it, so that a thread that
// reads too early does not find the data.
struct Pending {
  std::vector<Copy> copies;
  uint64_t expected = 0;
};

inline thread_local ucontext_t scheduler;
inline thread_local std::vector<std::unique_ptr<Fiber>> fibers;
inline thread_local std::function<void()> kernel;
// Two buffers in turn, so that a fast fiber does not overwrite what a slow one has yet to read.
inline thread_local uint32_t shuffled[2][1024];
inline thread_local Cluster* cluster = nullptr;
inline thread_local unsigned rank = 0;
inline thread_local bool arrived_at_cluster = false;
inline thread_local std::vector<uint32_t> dynamic;
inline thread_local std::map<const void*, Pending> pending;
inline thread_local char shared_base;
inline thread_local bool backwards = false;  // the order of the fibers' turns: results must not depend on it

inline void wait_at(const char* what) {
  Fiber& self = *fibers[threadIdx.x];
  self.waiting_at = what;
  swapcontext(&self.context, &scheduler);
}

inline const char* const kClusterBarrier = "a cluster's barrier";

inline void run_fiber() {
  kernel();
  fibers[threadIdx.x]->done = true;
  wait_at("the end");
}

inline void run_block() {
  if (fibers.size() < blockDim.x) fibers.resize(blockDim.x);
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
    for (unsigned i = 0; i < blockDim.x; ++i) {
      const auto& fiber = fibers[i];
      if (fiber->waiting_at != fibers[0]->waiting_at) {
        std::fprintf(stderr, "threads of one block wait at %s and at %s\n", fiber->waiting_at,
                     fibers[0]->waiting_at);
        std::abort();
      }
    }
    if (!fibers[0]->done && fibers[0]->waiting_at == kClusterBarrier) cluster->meet();
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
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline float __uint_as_float(uint32_t bits) { return fastkd::float_of(bits); }
inline uint32_t __float_as_uint(float x) { return fastkd::bits_of(x); }

namespace fastkd::cuda {

struct Arrival;

inline char* dynamic_shared() {
  const auto address = reinterpret_cast<uintptr_t>(emulation::dynamic.data());
  return reinterpret_cast<char*>((address + 15) / 16 * 16);
}
inline unsigned cluster_rank() { return emulation::rank; }
inline unsigned cluster_size() { return static_cast<unsigned>(emulation::cluster->shared_bases.size()); }
inline void cluster_arrive() {
  __syncthreads();
  emulation::arrived_at_cluster = true;
}
inline void cluster_wait() {
  if (!emulation::arrived_at_cluster) std::abort();
  emulation::wait_at(emulation::kClusterBarrier);
}
inline void store_remote(uint32_t* x, unsigned rank, uint32_t value) {
  auto* mine = emulation::cluster->shared_bases[emulation::rank];
  auto* theirs = emulation::cluster->shared_bases[rank];
  *reinterpret_cast<uint32_t*>(theirs + (reinterpret_cast<char*>(x) - mine)) = value;
}
inline void begin_arrivals(Arrival*, int) { emulation::pending.clear(); }
inline void expect_bytes(Arrival* arrival, uint32_t bytes) { emulation::pending[arrival].expected += bytes; }
inline void bulk_copy(void* to, const void* from, uint32_t bytes, Arrival* arrival) {
  const auto unaligned = (reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) | bytes) % 16;
  if (unaligned || bytes == 0) std::abort();
  emulation::pending[arrival].copies.push_back({to, from, bytes});
}
inline void await_arrival(Arrival* arrival) {
  emulation::Pending& all = emulation::pending.at(arrival);
  for (const emulation::Copy& copy : all.copies) {
    std::memcpy(copy.to, copy.from, copy.bytes);
    all.expected -= copy.bytes;
  }
  all.copies.clear();
  if (all.expected != 0) std::abort();  // the GPU would wait forever
}

}  // namespace fastkd::cuda

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
  constexpr int kValues[] = {9, 0, 232448, 233472, 1024, 132};
  return *value = kValues[which], cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "an error"; }
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* out, Kernel) {
  return out->sharedSizeBytes = 2048, cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, Kernel, const cudaLaunchConfig_t*) {
  return *clusters = 1, cudaSuccess;
}

template <class... Declared, class... Given>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Declared...),
                               const Given&... args) {
  const unsigned size = config->numAttrs ? config->attrs->val.clusterDim.x : 1;
  if (config->gridDim.x % size != 0) return cudaErrorInvalidConfiguration;
  emulation::Cluster cluster(size);
  const bool backwards = emulation::backwards;
  const auto run = [&](unsigned rank) {
    emulation::backwards = backwards;
    emulation::cluster = &cluster;
    emulation::rank = rank;
    cluster.shared_bases[rank] = &emulation::shared_base;
    emulation::kernel = [&] { kernel(args...); };
    gridDim = config->gridDim;
    blockDim = config->blockDim;
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y) {
      for (unsigned first = 0; first < gridDim.x; first += size) {
        blockIdx.x = first + rank;
        // NaN, so that no result is right by chance
        emulation::dynamic.assign(config->dynamicSmemBytes / 4 + 4, 0x7fc07fc0u);
        cluster.meet();
        emulation::run_block();
      }
    }
  };
  std::vector<std::thread> others;
  for (unsigned rank = 1; rank < size; ++rank) others.emplace_back(run, rank);
  run(0);
  for (std::thread& other : others) other.join();
  return cudaSuccess;
}
