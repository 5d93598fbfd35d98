// Decides whether a cluster of blocks can run a row, and how many blocks it has.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../../params.h"

namespace fastkd {
namespace cuda {

struct ClusterShape {
  unsigned blocks = 0;  // 0: use the streaming kernel
  unsigned bytes = 0;   // dynamic shared memory per block, in addition to what the kernel declares
};

// The memory that a kernel needs for a row: at most `vectors` vectors of 16 bytes for each of its sides.
struct RowSize {
  int64_t rows;
  int vectors;
  int sides;
};

// Whether vectors of both sides begin on 16-byte boundaries together, in every row.
bool aligned_alike(const Rows& student, const Rows& teacher, int element_bytes);

// The size of a cluster that every device with clusters allows. A launch has to request more explicitly.
constexpr unsigned kPortableCluster = 8;

// Chooses a cluster on the current device: of `wanted` blocks if that is positive, else of as few as leave
// room for a second row on each multiprocessor, whose fetch then hides behind the first row's arithmetic;
// failing that, of as few as can hold the row. 16 blocks are used only where 8 cannot hold it. `declared`:
// bytes of shared memory that the kernel declares itself.
ClusterShape choose_cluster(const RowSize& row, unsigned declared, int wanted);

}  // namespace cuda
}  // namespace fastkd
