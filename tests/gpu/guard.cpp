// A device guard for a CUDA device that is not there: torch's indexing asks for one even where tensors hold no
// data. A build of torch for CPUs has none, and that of older builds with CUDA asks the driver.
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {
const c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> guard;
const c10::impl::DeviceGuardImplRegistrar registrar(c10::DeviceType::CUDA, &guard);
}  // namespace
