#include "dispatch.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <system_error>
#include <thread>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "isa/kernels.h"

namespace fastkd::cpu {
namespace {

// A gradient larger than the caches is written past them. A smaller one will soon be read again.
constexpr int64_t kStreamedBytes = int64_t(16) << 20;
// kElementsPerThread: below this much work another thread costs more than it gains. The other constants bound
// the work that a thread claims at once ("grab"): each thread gets several grabs, but threads that claim work
// too often disturb each other.
constexpr int64_t kElementsPerThread = int64_t(1) << 16;
constexpr int64_t kLeastPerGrab = int64_t(1) << 15, kMostPerGrab = int64_t(1) << 18;
constexpr int64_t kGrabsPerThread = 16;

struct Queue {
  std::atomic<int64_t> next{0};
  int64_t rows, grab;

  static bool take(void* state, int64_t* begin, int64_t* end) {
    Queue& queue = *static_cast<Queue*>(state);
    *begin = queue.next.fetch_add(queue.grab, std::memory_order_relaxed);
    *end = std::min(*begin + queue.grab, queue.rows);
    return *begin < queue.rows;
  }
};

// Threads live for one call. Starting one costs microseconds, and no thread can get lost in a fork.
template <class Body>
void on_threads(int64_t rows, int64_t columns, int threads, const Body& body) {
  Queue queue;
  queue.rows = rows;
  const int64_t grab =
      std::clamp(rows * columns / (std::max(1, threads) * kGrabsPerThread), kLeastPerGrab, kMostPerGrab);
  queue.grab = std::max<int64_t>(1, grab / std::max<int64_t>(1, columns));
  const int64_t useful = std::min(rows, rows * columns / kElementsPerThread);
  const int helpers = static_cast<int>(std::min<int64_t>(threads, std::max<int64_t>(1, useful))) - 1;
  std::vector<std::thread> team;
  team.reserve(std::max(0, helpers));
  for (int i = 0; i < helpers; ++i) {
    try {
      team.emplace_back([&] { body(&queue); });
    } catch (const std::system_error&) {
      break;  // out of threads: those that exist do the work
    }
  }
  body(&queue);
  for (std::thread& thread : team) thread.join();
}

const CpuKernels& kernels(const std::string& isa, bool wide) {
  if (wide) return kDoubleKernels;
#if defined(FASTKD_X86)
  if (isa == "avx512") return kAvx512Kernels;
  if (isa == "avx2") return kAvx2Kernels;
#endif
  if (isa == "baseline") return kBaselineKernels;
  throw std::invalid_argument("unknown instruction set " + isa);
}

}  // namespace

void advise_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = uintptr_t(2) << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) / kHuge * kHuge;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / kHuge * kHuge;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

std::vector<std::string> isas() {
  std::vector<std::string> found;
#if defined(FASTKD_X86)
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    found.push_back("avx512");
  }
  if (avx2) found.push_back("avx2");
#endif
  found.push_back("baseline");
  return found;
}

int64_t first_bad_label(const int64_t* labels, int64_t rows, int64_t total, int64_t ignore_index) {
  for (int64_t r = 0; r < rows; ++r) {
    if ((labels[r] < 0 || labels[r] >= total) && labels[r] != ignore_index) return r;
  }
  return -1;
}

void dense_rows(const DenseParams& params, const std::string& isa, int threads) {
  const CpuKernels& run = kernels(isa, params.wide);
  const Rows& out = params.grad_student;
  const bool in_place = out.data == params.student.data;
  const int64_t bytes = params.rows * params.vocab * (out.dtype == Dtype::kFloat32 ? 4 : 2);
  const bool streamed = out.data != nullptr && !in_place && bytes > kStreamedBytes;
  on_threads(params.rows, params.vocab, threads,
             [&](Queue* queue) { run.dense_rows(params, streamed, Queue::take, queue); });
}

void scale_rows(const ScaleParams& params, const std::string& isa, int threads) {
  const CpuKernels& run = kernels(isa, params.wide);
  on_threads(params.rows, params.grad.columns, threads,
             [&](Queue* queue) { run.scale_rows(params, Queue::take, queue); });
}

}  // namespace fastkd::cpu
