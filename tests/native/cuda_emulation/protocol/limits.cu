// limits: checks properties of the emulated GPU that the kernels as they are do not show: limits of launches,
// bounds and alignment of shared memory, and the errors of approximate functions. Prints what is not as it
// should be and exits with 1, or exits with 0.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "machine/global_memory.h"

namespace {

constexpr unsigned kThreads = 64;
constexpr size_t kBytes = 1024;

enum class Action {
  kNothing,
  kReadsDynamic,
  kReadsUnaligned,
  kReadsBehind,
  kReadsOtherBlock,
  kWritesBehind,
  kReadsUnalignedGlobal,
  kReadsUnknownGlobal,
  kUnknownRegister,
  kDeclaresTooMuch,
  kLeavesBarrier,
  kLeavesWarp,
};

const char* shown_address;  // of the shared memory of block 0

void meet() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

uint32_t read_vector(const char* address) {
  const uint4 four = *reinterpret_cast<const uint4*>(address);
  return four.x;
}

void act(Action action, size_t bytes, const char* global) {
  extern __shared__ char dynamic[];
  if (action == Action::kReadsOtherBlock && blockIdx.x == 0) shown_address = dynamic;
  meet();
  if (threadIdx.x == 0 && blockIdx.x == gridDim.x - 1) {
    uint32_t out = 0;
    if (action == Action::kReadsDynamic) std::fill(dynamic, dynamic + 16, 0), out = read_vector(dynamic);
    if (action == Action::kReadsUnaligned) out = read_vector(dynamic + 4);
    if (action == Action::kReadsBehind) out = read_vector(dynamic + bytes);
    if (action == Action::kReadsOtherBlock) out = read_vector(shown_address);
    if (action == Action::kWritesBehind) dynamic[bytes] = 1;
    if (action == Action::kReadsUnalignedGlobal) out = read_vector(global + 4);
    if (action == Action::kReadsUnknownGlobal) out = read_vector(global + kBytes);
    if (action == Action::kUnknownRegister) asm("mov.u32 %0, %%laneid;" : "=r"(out));
    if (action == Action::kDeclaresTooMuch) {
      __shared__ char large[2 * emulation::kDeclaredBytes];
      large[0] = 0;
    }
    if (action == Action::kLeavesWarp) return;
    if (out == 1) shown_address = nullptr;  // uses the value
  }
  if (action == Action::kLeavesWarp) __shfl_xor_sync(0xffffffffu, 0, 1);
  meet();
  if (action == Action::kLeavesBarrier) asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

int wrong = 0;

void check(bool right, const std::string& what) {
  if (right) return;
  std::printf("%s\n", what.c_str());
  ++wrong;
}

alignas(16) char global[kBytes + 16];

// Returns the fault of a launch, or an empty string, or "refused".
std::string fault_of(Action action, unsigned blocks = 2, unsigned cluster = 2, size_t bytes = kBytes) {
  emulation::restrict_memory();
  emulation::allow_memory(global, kBytes, false);
  cudaLaunchAttribute attribute{cudaLaunchAttributeClusterDimension, {dim3(cluster)}};
  const cudaLaunchConfig_t config{dim3(blocks), dim3(kThreads), bytes, nullptr, &attribute, 1};
  try {
    return cudaLaunchKernelEx(&config, act, action, bytes, global) == cudaSuccess ? "" : "refused";
  } catch (const emulation::Fault& fault) {
    return fault.what();
  }
}

void expect(Action action, const std::string& report) {
  const std::string fault = fault_of(action);
  const bool found = report.empty() ? fault.empty() : fault.find(report) != std::string::npos;
  check(found, "reported '" + fault + "' instead of '" + report + "'");
}

void check_accesses() {
  expect(Action::kReadsDynamic, "");
  expect(Action::kReadsUnaligned, "shared memory that is not aligned");
  expect(Action::kReadsBehind, "behind the dynamic shared memory that the launch requested");
  expect(Action::kReadsOtherBlock, "another block's shared memory through a plain pointer");
  expect(Action::kWritesBehind, "a write behind the dynamic shared memory");
  expect(Action::kReadsUnalignedGlobal, "16 bytes that is not aligned");
  expect(Action::kReadsUnknownGlobal, "a read outside of the tensors' rows");
  expect(Action::kUnknownRegister, "a PTX register that the emulation does not know: %%laneid");
  expect(Action::kLeavesBarrier, "exits between barrier.cluster.arrive and barrier.cluster.wait");
  expect(Action::kLeavesWarp, "31 threads at a shuffle");
  expect(Action::kNothing, "");
}

void check_launches() {
  using emulation::kSharedPerBlock, emulation::kSharedWithoutOptIn;
  const auto allow = [](size_t bytes) {
    return cudaFuncSetAttribute(act, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  };
  check(fault_of(Action::kNothing, 2, 2, kSharedWithoutOptIn).empty(), "48 KiB need no request");
  check(fault_of(Action::kNothing, 2, 2, kSharedWithoutOptIn + 16) == "refused", "more than 48 KiB need one");
  check(allow(kSharedPerBlock + 16) != cudaSuccess, "227 KiB are the limit of a request");
  check(allow(kSharedPerBlock) == cudaSuccess, "227 KiB can be requested");
  check(fault_of(Action::kNothing, 2, 2, kSharedPerBlock).empty(), "227 KiB can be used");
  check(fault_of(Action::kNothing, 3, 2) == "refused", "a grid is a number of whole clusters");
  check(fault_of(Action::kNothing, 16, 16) == "refused", "16 blocks need a request");
  cudaFuncSetAttribute(act, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  check(fault_of(Action::kNothing, 16, 16).empty(), "16 blocks can be requested");
  check(allow(kBytes) == cudaSuccess, "a request can be lowered");
  check(fault_of(Action::kNothing, 2, 2, 2 * kBytes) == "refused", "the last request counts");
  expect(Action::kDeclaresTooMuch, "more shared variables than it reports");
}

// The error of f(x), in units of the last place of the exact value.
double ulps(float found, double exact) {
  const float rounded = static_cast<float>(exact);
  return std::fabs(found - exact) / (std::nextafter(std::fabs(rounded), INFINITY) - std::fabs(rounded));
}

void check_numbers() {
  using emulation::divide_approx, emulation::ex2_approx_ftz, emulation::lg2_approx_ftz;
  double exponential = 0, logarithm = 0, quotient = 0;
  for (int i = 1; i < 20'000; ++i) {
    const float x = static_cast<float>(i) * 0.00613f;
    exponential = std::max(exponential, ulps(ex2_approx_ftz(x - 60), std::exp2(double{x - 60})));
    const double exact = std::log2(double{x}), unit = x > 0.5f && x < 2 ? 1 : std::fabs(exact);
    logarithm = std::max(logarithm, std::fabs(lg2_approx_ftz(x) - exact) / unit * 0x1p22);
    quotient = std::max(quotient, ulps(divide_approx(x, x + 3), double{x} / double{x + 3}));
  }
  check(exponential > 1.9 && exponential <= 2.5, "ex2 is off by up to 2 ulp of the rounded value");
  check(logarithm > 0.7 && logarithm <= 1, "lg2 is off by up to 2^-22");
  check(quotient > 1.9 && quotient <= 2.5, "a quotient is off by up to 2 ulp of the rounded value");
  check(ex2_approx_ftz(0) == 1 && ex2_approx_ftz(-126.5f) == 0, "ex2(0) is exact, and small results are 0");
  check(ex2_approx_ftz(INFINITY) == INFINITY && ex2_approx_ftz(-INFINITY) == 0, "ex2 of infinities");
  check(lg2_approx_ftz(1e-40f) == -INFINITY, "lg2 takes small numbers for 0");
  check(std::isnan(ex2_approx_ftz(NAN)) && std::isnan(lg2_approx_ftz(-1)), "NaN stays NaN");
}

}  // namespace

int main() {
  check_numbers();
  check_accesses();
  check_launches();
  return wrong > 0;
}
