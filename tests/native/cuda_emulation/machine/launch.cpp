#include "launch.h"

#include <map>

#include "cluster.h"

namespace emulation {

namespace {

// Returns whether the CUDA runtime would start the kernel.
bool is_possible(const Kernel& kernel, const Shape& shape) {
  const unsigned most = kernel.non_portable_cluster ? kLargestCluster : kPortableCluster;
  return shape.grid.x >= 1 && shape.grid.x % shape.cluster == 0 && shape.cluster >= 1 &&
         shape.cluster <= most && shape.block.x >= 1 && shape.block.x <= kMostThreads &&
         shape.dynamic_bytes <= kernel.allowed_dynamic_bytes;
}

}  // namespace

Kernel& kernel_at(const void* function) {
  static std::map<const void*, Kernel> kernels;
  return kernels[function];
}

bool launch(Kernel& kernel, const Shape& shape, const std::function<void()>& body) {
  if (!is_possible(kernel, shape)) return false;
  if (shape.block.x % kLanes || shape.block.y * shape.block.z * shape.grid.z != 1) {
    fail("a launch that the emulation does not know: threads along x in whole warps, a grid along x and y");
  }
  gridDim = shape.grid;
  blockDim = shape.block;
  for (unsigned y = 0; y < shape.grid.y; ++y) {
    for (unsigned x = 0; x < shape.grid.x; x += shape.cluster) {
      Cluster(kernel, shape, x, y).run(body);
      if (kernel.static_bytes > kDeclaredBytes) fail("a kernel with more shared variables than it reports");
      if (kernel.static_bytes + shape.dynamic_bytes > kSharedPerBlock) {
        fail("a launch with more shared memory, variables included, than a block can have");
      }
    }
  }
  return true;
}

}  // namespace emulation
