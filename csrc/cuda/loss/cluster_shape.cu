#include <algorithm>

#include "../device.h"
#include "cluster_shape.h"

namespace fastkd {
namespace cuda {

namespace {

constexpr int64_t kVector = 16;
constexpr unsigned kSizes[] = {1, 2, 4, kPortableCluster, 2 * kPortableCluster};
constexpr int64_t kMaxBlocks = 0x7fffffff;
// A block with less of a row than this would spend more time on its start than on the row.
constexpr int64_t kLeastGroups = 512;

int64_t bytes_per_block(const RowSize& row, unsigned blocks) {
  return (row.groups + int64_t{blocks} - 1) / blocks * row.group_bytes + int64_t{blocks} * row.packets;
}

// Whether the rows leave multiprocessors idle that more blocks for each row would use.
bool leaves_idle(const ClusterDevice& device, const RowSize& row, unsigned blocks) {
  return blocks < kPortableCluster && row.groups / (2 * int64_t{blocks}) >= kLeastGroups &&
         row.rows * blocks < 2 * int64_t{device.multiprocessors};
}

}  // namespace

int64_t clusters_for(int64_t rows, int at_once, int rows_each) {
  if (rows_each > 0) return (rows + rows_each - 1) / rows_each;
  const int64_t most = int64_t{kMostRows} * at_once, turns = (rows + most - 1) / most;
  return std::min(rows, turns * at_once);
}

bool aligned_alike(const Rows& student, const Rows& teacher, int64_t rows, int64_t inner) {
  const int of_s = element_bytes(student.dtype), of_t = element_bytes(teacher.dtype);
  // A group begins where the narrower side has a boundary, and the wider one, which has more of them, has one
  // there if both sides are equally many columns away from one of its boundaries.
  const auto differ = [&](int64_t a, int64_t b) { return (a - b) % (kVector / std::max(of_s, of_t)) != 0; };
  const auto columns = [](const void* data, int bytes) { return reinterpret_cast<intptr_t>(data) / bytes; };
  // The stride of an index that is always 0 is not used, and may be anything.
  return !differ(columns(student.data, of_s), columns(teacher.data, of_t)) &&
         !(rows > inner && differ(student.outer_stride, teacher.outer_stride)) &&
         !(inner > 1 && differ(student.inner_stride, teacher.inner_stride));
}

ClusterDevice cluster_device(int device, int declared) {
  ClusterDevice found{};
  found.has_clusters = attribute(cudaDevAttrComputeCapabilityMajor, device) >= 9;
  found.multiprocessors = multiprocessors(device);
  found.per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device) - declared;
  found.per_multiprocessor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  found.taken = attribute(cudaDevAttrReservedSharedMemoryPerBlock, device) + declared;
  return found;
}

std::vector<ClusterShape> cluster_shapes(const ClusterDevice& device, const RowSize& row, int wanted) {
  std::vector<ClusterShape> two, idle, wide, one;
  if (!device.has_clusters) return one;
  for (const unsigned blocks : kSizes) {
    const int64_t bytes = bytes_per_block(row, blocks);
    if (wanted > 0 && static_cast<int>(blocks) != wanted) continue;
    if (bytes > device.per_block || row.rows * blocks > kMaxBlocks) continue;
    const bool fits_twice = 2 * (bytes + device.taken) <= device.per_multiprocessor;
    const ClusterShape shape{blocks, static_cast<unsigned>(bytes), fits_twice ? 2 : 1, 1, false};
    one.push_back(shape);
    if (!fits_twice) continue;
    if (blocks > kPortableCluster) {
      wide.push_back(shape);
    } else {
      (leaves_idle(device, row, blocks) ? idle : two).push_back(shape);
    }
  }
  two.insert(two.end(), idle.rbegin(), idle.rend());
  two.insert(two.end(), wide.begin(), wide.end());
  for (const ClusterShape& shape : one) {
    const auto same = [&](const ClusterShape& other) { return other.blocks == shape.blocks; };
    if (std::none_of(two.begin(), two.end(), same)) two.push_back(shape);
  }
  return two;
}

}  // namespace cuda
}  // namespace fastkd
