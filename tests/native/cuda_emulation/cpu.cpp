// The CPU functions of the bindings, implemented by the emulated CUDA kernels. A module built with this file
// runs them wherever the suite runs the native backend on a CPU.
#include <stdexcept>

#include "../../../csrc/cpu/dispatch.h"
#include "../../../csrc/cpu/labels.h"
#include "../../../csrc/cuda/api.h"
#include "cuda_runtime.h"

namespace fastkd::cpu {

namespace {

// The fibers of a block run forwards in one instruction set and backwards in the other. If results differ,
// there is a race.
const std::string kForwards = "emulated_cuda", kBackwards = "emulated_cuda_backwards";

void check(const char* error) {
  if (error != nullptr) throw std::runtime_error(error);
}

}  // namespace

void advise_huge_pages(void*, int64_t) {}

std::vector<std::string> isas() { return {kForwards, kBackwards}; }

int64_t first_bad_label(const int64_t*, int64_t, int64_t, int64_t) { return -1; }

void dense_rows(const DenseParams& params, const std::string& isa, int) {
  emulation::backwards = isa == kBackwards;
  check(cuda::dense_rows(params, 0, nullptr));
}

void scale_rows(const ScaleParams& params, const std::string& isa, int) {
  emulation::backwards = isa == kBackwards;
  check(cuda::scale_rows(params, 0, nullptr));
}

void row_weights(const WeightParams& params) { check(cuda::row_weights(params, 0, nullptr)); }

}  // namespace fastkd::cpu
