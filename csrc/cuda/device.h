// Sets the calling thread's current device for the duration of a scope.
#pragma once

#include <cuda_runtime.h>

namespace fastkd {
namespace cuda {

class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    error_ = cudaGetDevice(&previous_);
    if (error_ != cudaSuccess || previous_ == device) return;
    error_ = cudaSetDevice(device);
    changed_ = error_ == cudaSuccess;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

  cudaError_t error() const { return error_; }

 private:
  int previous_ = 0;
  bool changed_ = false;
  cudaError_t error_ = cudaSuccess;
};

// Returns an attribute of a device, or 0 if it is not known.
inline int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  return cudaDeviceGetAttribute(&value, which, device) == cudaSuccess ? value : 0;
}

inline int multiprocessors(int device) {
  const int found = attribute(cudaDevAttrMultiProcessorCount, device);
  return found > 0 ? found : 1;
}

// Returns the text of an error, or nullptr. Clears the runtime's last error, which the next call would
// otherwise report.
inline const char* describe(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(error);
}

}  // namespace cuda
}  // namespace fastkd
