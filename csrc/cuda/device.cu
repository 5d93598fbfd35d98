// Checks whether the kernels can run on a device.
#include <string>

#include "api.h"
#include "device.h"

namespace fastkd {
namespace cuda {

namespace {

constexpr int kOldestMajor = 8;  // needed for bfloat16 conversions; the oldest machine code that is built

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  return cudaDeviceGetAttribute(&value, which, device) == cudaSuccess ? value : 0;
}

}  // namespace

const char* missing(int device) {
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
  return nullptr;
}

}  // namespace cuda
}  // namespace fastkd
