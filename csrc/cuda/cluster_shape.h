// Which rows a cluster of blocks takes, and how many blocks that are.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../params.h"

namespace fastkd {
namespace cuda {

struct ClusterShape {
  unsigned blocks = 0;  // 0: the streaming kernel has to do it
  unsigned bytes = 0;   // of shared memory per block, besides what the kernel declares itself
};

// What a kernel needs for a row: vectors of 16 bytes of each side, at most.
struct RowSize {
  int64_t rows;
  int vectors;
  int sides;
};

// Whether vectors of both sides begin on 16-byte boundaries together, in every row.
bool aligned_alike(const Rows& student, const Rows& teacher, int element_bytes);

// More blocks than every device that has clusters allows: the launch has to ask.
constexpr unsigned kPortableCluster = 8;

// For the current device. `wanted` blocks, or as few as leave room for a second row on each multiprocessor,
// whose fetch then hides behind the first one's arithmetic; failing that, as few as hold one; 16 only where 8
// do not.
// `declared`: bytes of shared memory that the kernel declares itself.
ClusterShape choose_cluster(const RowSize& row, unsigned declared, int wanted);

}  // namespace cuda
}  // namespace fastkd
