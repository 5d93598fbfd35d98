// The CPU functions of the bindings, implemented by the emulated CUDA kernels. A module built with this file
// runs them wherever the suite runs the native backend on a CPU.
#include <mutex>
#include <stdexcept>

#include "call_memory.h"
#include "csrc/cpu/dispatch.h"
#include "csrc/cuda/api.h"
#include "machine/launch.h"

namespace fastkd::cpu {

namespace {

// Each instruction set is a schedule. If their results differ, there is a race.
const std::string kForwards = "emulated_cuda", kBackwards = "emulated_cuda_backwards";

std::mutex running;  // the emulated GPU runs one call at a time

// A fault becomes a ValueError, which no test of a kernel expects.
template <class Run>
void run_in_order(const std::string& isa, const Run& run) {
  using Order = emulation::Schedule::Order;
  const std::lock_guard<std::mutex> lock(running);
  emulation::schedule.order = isa == kBackwards ? Order::kBackwards : Order::kForwards;
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

std::vector<std::string> isas() { return {kForwards, kBackwards}; }

int64_t first_bad_label(const int64_t*, int64_t, int64_t, int64_t) { return -1; }

void dense_rows(const DenseParams& params, const std::string& isa, int) {
  run_in_order(isa, [&] {
    emulation::restrict_memory_to(params);
    return cuda::dense_rows(params, 0, nullptr);
  });
}

void scale_rows(const ScaleParams& params, const std::string& isa, int) {
  run_in_order(isa, [&] {
    emulation::allow_all_memory();
    return cuda::scale_rows(params, 0, nullptr);
  });
}

}  // namespace fastkd::cpu
