// Launches of kernels: their shape, the order in which their threads run, and the faults that end them.
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

// The limits of an H100.
constexpr int kMultiprocessors = 132;
constexpr size_t kSharedPerBlock = 232448, kSharedWithoutOptIn = 49152;
constexpr size_t kDeclaredBytes = 4096;  // of shared memory that each kernel is said to declare itself
constexpr unsigned kPortableCluster = 8, kLargestCluster = 16, kMostThreads = 1024;

// A program that is wrong on a GPU, at least under some schedule.
class Fault : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

// The order in which threads run, and how soon copies and remote stores take effect.
struct Schedule {
  enum class Order {
    kInOrder,     // each thread runs until it has to wait, the first ones first; copies land late
    kRandom,      // each time any thread that can run
    kPriorities,  // blocks, warps and threads have priorities, which change now and then
  };
  Order order = Order::kInOrder;
  uint64_t seed = 0;

  static Schedule random(uint64_t seed) { return {seed % 2 ? Order::kRandom : Order::kPriorities, seed}; }
  bool is_random() const { return order != Order::kInOrder; }
};
extern Schedule schedule;     // of the launches to come
extern int clusters_at_once;  // of at most 8 blocks, as the device says

struct Shape {
  dim3 grid, block;
  unsigned cluster;  // blocks along x
  size_t dynamic_bytes;
};

// A variable in shared memory. All blocks of a kernel have it at the same offset.
struct Variable {
  size_t offset = 0, bytes = 0;
  const char* name = nullptr;
};

// The properties that the CUDA runtime keeps for a kernel.
struct Kernel {
  size_t allowed_dynamic_bytes = kSharedWithoutOptIn;
  bool non_portable_cluster = false;
  std::vector<Variable> variables;  // by their numbers, see shared_variable()
  size_t static_bytes = 0;          // that they occupy; known once the kernel has run
};
Kernel& kernel_at(const void* function);

// Runs a kernel. Returns false where the CUDA runtime would refuse the launch. Throws a Fault.
bool launch(Kernel& kernel, const Shape& shape, const std::function<void()>& body);

}  // namespace emulation
