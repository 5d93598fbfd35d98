// The kernel for rows that fit into the shared memory of a cluster (Hopper and newer): it reads the logits
// from memory once, whatever the divergence.
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
  const ClusterOf<D, E> place;
  take_row<RowContext<D, E, ClusterOf<D, E>>>(call, functor, place,
                                              RowIndex::of(place.row_of(blockIdx.x), call.inner));
#endif
}

}  // namespace cuda
}  // namespace fastkd
