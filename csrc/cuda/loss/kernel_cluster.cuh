// The kernel for rows that fit into the shared memory of a cluster (Hopper and newer): it reads the logits
// from memory once, whatever the divergence. A cluster takes several rows, and fetches the next one during
// the last sweep.
#pragma once

#include "../memory/staged.cuh"
#include "cluster_shape.h"
#include "kernel.cuh"

namespace fastkd {
namespace cuda {

constexpr int kClusterThreads = 256;

template <class D, class E>
using ClusterOf = Cluster<kPacketVectors<PartialWords<D, std::is_same<E, AnyElement>::value>::kCount>>;

template <class D, class E>
__global__ void __launch_bounds__(kClusterThreads, 2) cluster_kernel(const Call call, const D functor) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  using Place = ClusterOf<D, E>;
  const auto rows = static_cast<unsigned>(call.rows);
  Progress progress;
#pragma unroll 1
  for (unsigned row = Place::number(); row < rows; row += Place::count()) {
    const Place place(most_groups(call.vocab, RowView<E>::kGroup), progress);
    take_row<RowContext<D, E, Place>>(call, functor, place, RowIndex::of(row, call.inner));
  }
  finish_cluster(progress);
#endif
}

}  // namespace cuda
}  // namespace fastkd
