// Decides whether a cluster of blocks can run a row, and how many blocks it has.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "../../params.h"

namespace fastkd {
namespace cuda {

struct ClusterShape {
  unsigned blocks = 0;  // 0: use the streaming kernel
  unsigned bytes = 0;   // dynamic shared memory per block, in addition to what the kernel declares
  int together = 0;     // how many of the blocks a multiprocessor can hold, 1 or 2
  int at_once = 1;      // how many clusters the device runs at the same time
  bool keeps_logs = false;
};

// The most rows that a cluster takes, one after the other. With so many its start counts little. With more
// the device would wait long for the last clusters where other work leaves room for fewer than it can run.
constexpr int kMostRows = 16;

// The number of clusters for so many rows: as many as run at the same time, or a multiple of that, so that
// all of them have as much to do; or as many as `rows_each` demands, unless that is 0.
int64_t clusters_for(int64_t rows, int at_once, int rows_each);

// The memory that a kernel needs for a row: `group_bytes` for each of its groups of columns, all sides
// together, and in each block `packets` bytes for each block of the cluster.
struct RowSize {
  int64_t rows;
  int groups;
  int group_bytes;
  int packets;
};

// Whether groups of both sides begin on 16-byte boundaries together, in each of the rows, of which `inner`
// have the same first index.
bool aligned_alike(const Rows& student, const Rows& teacher, int64_t rows, int64_t inner);

// The size of a cluster that every device with clusters allows. A launch has to request more explicitly.
constexpr unsigned kPortableCluster = 8;

// The device as far as the choice of a cluster depends on it. The sizes count bytes of shared memory.
struct ClusterDevice {
  bool has_clusters;
  int multiprocessors;
  int64_t per_block;           // what a block of the kernel may ask for
  int64_t per_multiprocessor;  // what all blocks on a multiprocessor have together
  int64_t taken;               // what a block takes in addition to what it asks for
};

// Describes a device, for a kernel that declares `declared` bytes of shared memory itself.
ClusterDevice cluster_device(int device, int declared);

// The shapes that can hold the row, best first: as few blocks as leave room for a second row on each
// multiprocessor, whose fetch then hides behind the first row's arithmetic, and more of them where the rows
// would leave multiprocessors idle; then 16 blocks if two rows of these have room; then as few as can hold
// the row. `wanted` is a number of blocks that is the only one allowed, unless it is 0 or less.
std::vector<ClusterShape> cluster_shapes(const ClusterDevice& device, const RowSize& row, int wanted);

}  // namespace cuda
}  // namespace fastkd
