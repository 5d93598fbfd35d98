// The kernel for rows of any length: one block per row, which reads the logits from memory again in each
// sweep and keeps none of them in between.
#pragma once

#include "kernel.cuh"

namespace fastkd {
namespace cuda {

// The threads of a block, and the blocks that a multiprocessor has to hold. Together they bound the registers
// per thread to 64, 80, 96 or 128. Where logarithms, powers, two streams, a label treated apart or extras
// need more than 64, fewer threads with more registers each are better than spilling.
template <class D, class E>
struct BlockShape {
  static constexpr bool kExtra = RowContext<D, E, OneBlock>::kHasExtra;
  static constexpr bool kMore = D::kSums > 0 || D::kCross || D::kSplitsLabel || D::kStreams > 1;
  static constexpr bool kMost = D::kStreams == 3 || (kExtra && D::kStudentReads == Fields::kStored);
  static constexpr int kThreads = kMost ? 256 : kExtra ? 320 : kMore ? 256 : 512;
  static constexpr int kBlocks = kMost || kExtra || !kMore ? 2 : 3;
};

template <class D, class E>
__global__ void __launch_bounds__(BlockShape<D, E>::kThreads, BlockShape<D, E>::kBlocks)
    streaming_kernel(const Call call, const D functor) {
  const OneBlock place;
  take_row<RowContext<D, E, OneBlock>>(call, functor, place, RowIndex::of(blockIdx.x, call.inner));
}

}  // namespace cuda
}  // namespace fastkd
