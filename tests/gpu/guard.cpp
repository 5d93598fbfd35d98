// A device guard for a CUDA device that does not exist: torch's indexing needs one even where tensors hold no
// data. A CPU build of torch has none, and the guard of older CUDA builds calls the driver.
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {
const c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> guard;
const c10::impl::DeviceGuardImplRegistrar registrar(c10::DeviceType::CUDA, &guard);
}  // namespace
