// The launch of a call's kernel. The file that defines it, launch.cuh, contains all kernels of a divergence,
// and takes minutes to compile for all of them; call.cu needs the declaration only.
#pragma once

#include "call.h"

namespace fastkd {
namespace cuda {

// Instantiated once for each divergence, by instance.cu.
template <class D>
cudaError_t launch_loss(const Call& call, const D& functor, cudaStream_t stream);

}  // namespace cuda
}  // namespace fastkd
