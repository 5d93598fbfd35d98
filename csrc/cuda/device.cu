// Checks whether the kernels can run on a device.
#include <atomic>
#include <string>

#include "api.h"
#include "device.h"

namespace fastkd {
namespace cuda {

namespace {

constexpr int kOldestMajor = 8;  // needed for bfloat16 conversions; the oldest machine code that is built

// The devices, by bit, that missing() has found to run the kernels: it is asked before every call.
std::atomic<uint64_t> known_to_run{0};

}  // namespace

const char* missing(int device) {
  const uint64_t bit = device >= 0 && device < 64 ? uint64_t{1} << device : 0;
  if (known_to_run & bit) return nullptr;
  thread_local std::string reason;
  int count = 0;
  if (const char* error = describe(cudaGetDeviceCount(&count))) {
    reason = std::string("the CUDA driver cannot be used: ") + error;
    return reason.c_str();
  }
  if (device < 0 || device >= count) {
    reason = "there is no CUDA device " + std::to_string(device) + " (" + std::to_string(count) + " found)";
    return reason.c_str();
  }
  const int major = attribute(cudaDevAttrComputeCapabilityMajor, device);
  const int minor = attribute(cudaDevAttrComputeCapabilityMinor, device);
  if (major < kOldestMajor) {
    reason = "the GPU has compute capability " + std::to_string(major) + "." + std::to_string(minor) +
             ", the kernels need 8.0 (Ampere) or newer";
    return reason.c_str();
  }
  known_to_run |= bit;
  return nullptr;
}

}  // namespace cuda
}  // namespace fastkd
