// Chooses and launches the kernel for the dtypes and the shape of a call. instance.cu instantiates this for
// each divergence.
#pragma once

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>
#include <utility>

#include "kernel.cuh"
#include "kernel_cluster.cuh"
#include "kernel_sparse.cuh"
#include "kernel_streaming.cuh"
#include "launch.h"

namespace fastkd {
namespace cuda {

// Enough threads for about four groups each, so that with a small vocabulary most of a block is not idle.
inline unsigned threads_for(int vocab, unsigned most) {
  unsigned threads = 2 * kWarp;
  while (threads < most && threads * 32 < static_cast<unsigned>(vocab)) threads *= 2;
  return threads < most ? threads : most;
}

template <class E, class D>
cudaError_t launch_streaming(const Call& call, const D& functor, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(call.rows));
  config.blockDim = dim3(threads_for(call.vocab, BlockShape<D, E>::kThreads));
  config.stream = stream;
  return cudaLaunchKernelEx(&config, streaming_kernel<D, E>, call, functor);
}

// The launch configuration of a cluster. It points to `attribute`, which has to live until the launch.
inline cudaLaunchConfig_t cluster_config(const Call& call, ClusterShape shape, cudaStream_t stream,
                                         cudaLaunchAttribute* attribute) {
  attribute->id = cudaLaunchAttributeClusterDimension;
  attribute->val.clusterDim.x = shape.blocks;
  attribute->val.clusterDim.y = attribute->val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  const int64_t clusters = clusters_for(call.rows, shape.at_once, call.cluster_rows);
  config.gridDim = dim3(static_cast<unsigned>(clusters) * shape.blocks);
  config.blockDim = dim3(threads_for(call.vocab / static_cast<int>(shape.blocks), kClusterThreads));
  config.dynamicSmemBytes = shape.bytes;
  config.stream = stream;
  config.attrs = attribute;
  config.numAttrs = 1;
  return config;
}

// The state that all launches of one cluster kernel on one device share.
class ClusterLaunches {
 public:
  // Lets the kernel use all of the shared memory and clusters of every size, now and in any later launch.
  template <class Kernel>
  void prepare(Kernel kernel, int device) {
    cudaFuncAttributes declared{};
    error_ = cudaFuncGetAttributes(&declared, kernel);
    device_ = cluster_device(device, static_cast<int>(declared.sharedSizeBytes));
    if (error_ != cudaSuccess || !device_.has_clusters) return;
    const std::pair<cudaFuncAttribute, int> wanted[] = {
        {cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(device_.per_block)},
        {cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared},
        {cudaFuncAttributeNonPortableClusterSizeAllowed, 1},
    };
    for (const auto& [attribute, value] : wanted) {
      if (error_ == cudaSuccess) error_ = cudaFuncSetAttribute(kernel, attribute, value);
    }
  }

  // Returns the best shape of which the device can run a cluster: a part of a GPU, or one that is shared,
  // may not have enough neighbouring multiprocessors. 16 blocks, for which the neighbours are few, are only
  // taken in pairs if pairs then occupy the device better than single blocks could. Empty where there is
  // none.
  template <class Kernel>
  ClusterShape shape_for(Kernel kernel, const Call& call, const RowSize& row) {
    if (error_ != cudaSuccess) return {};
    for (ClusterShape& shape : cluster_shapes(device_, row, call.cluster)) {
      shape.at_once = clusters_at_once(kernel, call, shape);
      const int64_t blocks = int64_t{shape.at_once} * shape.blocks;
      const bool pairs = shape.blocks > kPortableCluster && shape.together > 1;
      if (blocks > (pairs ? device_.multiprocessors : 0)) return shape;
    }
    return {};
  }

 private:
  template <class Kernel>
  int clusters_at_once(Kernel kernel, const Call& call, ClusterShape shape) {
    cudaLaunchAttribute attribute{};
    const cudaLaunchConfig_t config = cluster_config(call, shape, nullptr, &attribute);
    const auto asked = std::make_tuple(shape.blocks, shape.bytes, config.blockDim.x);
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto known = at_once_.find(asked);
    if (known != at_once_.end()) return known->second;
    int clusters = 0;
    const cudaError_t error = cudaOccupancyMaxActiveClusters(&clusters, kernel, &config);
    if (error != cudaSuccess) cudaGetLastError();  // clears the error, so that the caller does not see it
    return at_once_[asked] = error == cudaSuccess ? clusters : 0;
  }

  cudaError_t error_ = cudaErrorInvalidValue;
  ClusterDevice device_{};
  std::mutex mutex_;
  std::map<std::tuple<unsigned, unsigned, unsigned>, int> at_once_;  // by blocks, bytes, threads
};

constexpr int kMaxDevices = 64;

// Returns the kernel's launches on the current device, or nullptr where that is not known.
template <class E, class D>
ClusterLaunches* cluster_launches() {
  static ClusterLaunches of_device[kMaxDevices];
  static std::once_flag once[kMaxDevices];
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kMaxDevices) return nullptr;
  std::call_once(once[device], [&] { of_device[device].prepare(cluster_kernel<D, E>, device); });
  return &of_device[device];
}

template <class E, class D>
cudaError_t launch_cluster(const Call& call, const D& functor, ClusterShape shape, cudaStream_t stream) {
  cudaLaunchAttribute attribute{};
  const cudaLaunchConfig_t config = cluster_config(call, shape, stream, &attribute);
  Call shaped = call;
  shaped.keeps_logs = shape.keeps_logs;
  return cudaLaunchKernelEx(&config, cluster_kernel<D, E>, shaped, functor);
}

// Returns the cluster for the call, empty where its rows have to be streamed.
template <class E, class D>
ClusterShape cluster_for(const Call& call) {
  using Context = RowContext<D, E, ClusterOf<D, E>>;
  const bool contiguous =
      call.student.column_stride == 1 && (!Context::kTeacher || call.teacher.column_stride == 1);
  if (!contiguous) return {};
  if (Context::kTeacher && !aligned_alike(call.student, call.teacher, call.rows, call.inner)) return {};
  ClusterLaunches* const launches = cluster_launches<E, D>();
  if (launches == nullptr) return {};
  const int groups = most_groups(call.vocab, Context::kGroup);
  const int bytes = element_bytes(call.student.dtype);
  const int of_column = bytes + (Context::kTeacher ? element_bytes(call.teacher.dtype) : 0);
  const int packets =
      kBuffers * kClusterThreads / kWarp * kPacketVectors<WordsOf<Context>::kCount> * kVectorBytes;
  const RowSize size{call.rows, groups, Context::kGroup * of_column, packets};
  const ClusterShape shape = launches->shape_for(cluster_kernel<D, E>, call, size);
  if (!Context::kKeeps || call.grad_teacher.data) return shape;
  // Logarithms of 4 bytes take the place of the teacher's logits, and of narrow ones as much again.
  RowSize with_logs = size;
  with_logs.group_bytes = Context::kGroup * (bytes + 4);
  ClusterShape keeping = launches->shape_for(cluster_kernel<D, E>, call, with_logs);
  keeping.keeps_logs = true;
  // More blocks on a multiprocessor are worth more than the logarithms.
  const bool is_as_good =
      keeping.together >= shape.together &&
      (keeping.together > 1 || keeping.blocks <= std::max(shape.blocks, kPortableCluster));
  return keeping.blocks > 0 && is_as_good ? keeping : shape;
}

template <class E, class D>
cudaError_t launch_dense(const Call& call, const D& functor, cudaStream_t stream) {
  // A call of a single sweep reads the logits once in either kernel; a cluster would gain nothing.
  const bool reads_again = call.grad_student.data || call.grad_teacher.data || D::kSums > 0;
  if (call.cluster != 0 && (reads_again || call.cluster != DenseParams::kChoose)) {
    const ClusterShape shape = cluster_for<E, D>(call);
    if (shape.blocks > 0) return launch_cluster<E>(call, functor, shape, stream);
    if (call.cluster != DenseParams::kChoose) return cudaErrorInvalidConfiguration;
  }
  return launch_streaming<E>(call, functor, stream);
}

// Calls with one dtype on both sides and no extras (phases, metrics) have kernels for that dtype; the kernels
// for all dtypes run the rest. More kernels would take minutes to compile.
template <class D>
cudaError_t launch_loss(const Call& call, const D& functor, cudaStream_t stream) {
  using Context = RowContext<D, AnyElement, OneBlock>;
  // The student's side of a sparse teacher has phases only; launch_sparse() does all of it at once.
  if constexpr (!Context::kSparse) {
    const bool alike = !Context::kTeacher || call.student.dtype == call.teacher.dtype;
    if (alike && !has_extras(call)) {
      switch (call.student.dtype) {
        case Dtype::kFloat32:
          return launch_dense<Float32>(call, functor, stream);
        case Dtype::kBFloat16:
          return launch_dense<BFloat16>(call, functor, stream);
        case Dtype::kFloat16:
          return launch_dense<Float16>(call, functor, stream);
        default:
          return cudaErrorInvalidValue;
      }
    }
    // A phase sweeps once.
    if (call.phase == Phase::kAll) return launch_dense<AnyElement>(call, functor, stream);
  }
  return launch_streaming<AnyElement>(call, functor, stream);
}

template <class D>
cudaError_t launch_sparse(const Call& call, const D& functor, const SparseCall& teacher,
                          cudaStream_t stream) {
  if constexpr (kTakesSparse<D>) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(call.rows));
    config.blockDim = dim3(threads_for(call.vocab, kSparseThreads<D>));
    config.dynamicSmemBytes = sparse_row_bytes(teacher.entries);
    config.stream = stream;
    return cudaLaunchKernelEx(&config, sparse_kernel<D>, call, functor, teacher);
  } else {
    return cudaErrorInvalidValue;
  }
}

}  // namespace cuda
}  // namespace fastkd
