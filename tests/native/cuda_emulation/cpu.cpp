// The CPU functions of the bindings, implemented by the emulated CUDA kernels. A module built with this file
// runs them wherever the suite runs the native backend on a CPU.
#include <mutex>
#include <stdexcept>

#include "call_memory.h"
#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/reduction.h"
#include "csrc/cuda/api.h"
#include "machine/launch.h"

namespace fastkd::cpu {

namespace {

// One instruction set runs the threads in order, the other at random. If their results differ, there is a
// race.
const std::string kInOrder = "emulated_cuda", kShuffled = "emulated_cuda_shuffled";

std::mutex running;  // the emulated GPU runs one call at a time

// A fault becomes a ValueError, which no test of a kernel expects. The seed of a random schedule comes from
// the shape of the call, so that a test that fails does so again.
template <class Run>
void run_scheduled(const std::string& isa, uint64_t seed, const Run& run) {
  const std::lock_guard<std::mutex> lock(running);
  emulation::schedule = isa == kShuffled ? emulation::Schedule::random(seed) : emulation::Schedule{};
  const char* error = nullptr;
  try {
    error = run();
  } catch (const emulation::Fault& fault) {
    throw std::domain_error(fault.what());
  }
  if (error != nullptr) throw std::runtime_error(error);
}

}  // namespace

void advise_huge_pages(void*, int64_t) {}

std::vector<std::string> isas() { return {kInOrder, kShuffled}; }

int64_t first_bad_label(const int64_t*, int64_t, int64_t, int64_t) { return -1; }

void dense_rows(const DenseParams& params, const std::string& isa, int) {
  const auto seed =
      static_cast<uint64_t>(params.vocab * 31 + params.rows * 7) + static_cast<int>(params.divergence);
  run_scheduled(isa, seed, [&] {
    emulation::restrict_memory_to(params);
    return cuda::dense_rows(params, 0, nullptr);
  });
}

void scale_rows(const ScaleParams& params, const std::string& isa, int) {
  run_scheduled(isa, static_cast<uint64_t>(params.grad.columns + params.rows), [&] {
    emulation::allow_all_memory();
    return cuda::scale_rows(params, 0, nullptr);
  });
}

void row_weights(const WeightParams& params) {
  run_scheduled(kShuffled, static_cast<uint64_t>(params.rows), [&] {
    emulation::allow_all_memory();
    return cuda::row_weights(params, 0, nullptr);
  });
}

void totals(const TotalsParams& params) {
  run_scheduled(kShuffled, static_cast<uint64_t>(params.rows), [&] {
    emulation::allow_all_memory();
    return cuda::totals(params, 0, nullptr);
  });
}

}  // namespace fastkd::cpu
