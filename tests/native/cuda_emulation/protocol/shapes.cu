// shapes DECLARED: reads lines of a vocabulary and the bytes of a column on all sides. Prints for each how
// many blocks take a row of 1,000 rows, and how many of these a multiprocessor holds, with a kernel that
// declares that many bytes of shared memory itself.
#include <cstdio>
#include <cstdlib>

#include "csrc/cuda/loss/cluster_shape.h"
#include "csrc/cuda/loss/kernel_cluster.cuh"

int main(int count, char** arguments) {
  using namespace fastkd::cuda;
  if (count != 2) return std::fprintf(stderr, "usage: shapes DECLARED\n"), 2;
  const ClusterDevice device = cluster_device(0, std::atoi(arguments[1]));
  int vocab = 0, bytes = 0;
  while (std::scanf("%d %d", &vocab, &bytes) == 2) {
    const int columns = bytes == 8 ? 4 : 8;  // of a group: two sides of float32, or narrower ones
    const int packets = kBuffers * kClusterThreads / kWarp * 2 * kVectorBytes;
    const RowSize row{1000, (vocab + 2 * columns - 2) / columns, columns * bytes, packets};
    const auto shapes = cluster_shapes(device, row, 0);
    std::printf("%u %d\n", shapes.empty() ? 0 : shapes[0].blocks, shapes.empty() ? 0 : shapes[0].together);
  }
}
