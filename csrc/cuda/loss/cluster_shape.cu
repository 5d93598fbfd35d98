#include "cluster_shape.h"

namespace fastkd {
namespace cuda {

namespace {

constexpr int64_t kVector = 16;
constexpr unsigned kSizes[] = {1, 2, 4, kPortableCluster, 2 * kPortableCluster};
constexpr int64_t kMaxBlocks = 0x7fffffff;

int64_t attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  return cudaDeviceGetAttribute(&value, which, device) == cudaSuccess ? value : 0;
}

int64_t bytes_per_block(const RowSize& row, unsigned blocks) {
  return (row.vectors + int64_t{blocks} - 1) / blocks * kVector * row.sides;
}

}  // namespace

bool aligned_alike(const Rows& student, const Rows& teacher, int element_bytes) {
  const auto differ = [&](int64_t a, int64_t b) { return (a - b) * element_bytes % kVector != 0; };
  return (reinterpret_cast<intptr_t>(student.data) - reinterpret_cast<intptr_t>(teacher.data)) % kVector ==
             0 &&
         !differ(student.outer_stride, teacher.outer_stride) &&
         !differ(student.inner_stride, teacher.inner_stride);
}

ClusterShape choose_cluster(const RowSize& row, unsigned declared, int wanted) {
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return {};
  if (attribute(cudaDevAttrComputeCapabilityMajor, device) < 9) return {};
  const int64_t per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device) - declared;
  const int64_t per_multiprocessor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  const int64_t reserved = attribute(cudaDevAttrReservedSharedMemoryPerBlock, device) + declared;
  // Room for two rows on a multiprocessor is tried first, then room for one.
  for (const int together : {2, 1}) {
    for (const unsigned blocks : kSizes) {
      const int64_t bytes = bytes_per_block(row, blocks);
      if (wanted > 0 && static_cast<int>(blocks) != wanted) continue;
      if (bytes > per_block || row.rows * blocks > kMaxBlocks) continue;
      if (wanted <= 0 && together == 2 &&
          (blocks > kPortableCluster || 2 * (bytes + reserved) > per_multiprocessor)) {
        continue;
      }
      return {blocks, static_cast<unsigned>(bytes)};
    }
  }
  return {};
}

}  // namespace cuda
}  // namespace fastkd
