// The launch of a call's kernel. The file that defines it, launch.cuh, contains all kernels of a divergence,
// and takes minutes to compile for all of them; call.cu needs the declaration only.
#pragma once

#include "call.h"
#include "sparse_call.h"

namespace fastkd {
namespace cuda {

// Both are instantiated once for each divergence, by instance.cu.
template <class D>
cudaError_t launch_loss(const Call& call, const D& functor, cudaStream_t stream);

// Runs a call whose teacher is sparse. `call` is prepared as that of OffSupport, `functor` is that of the
// divergence. An error where the divergence takes no sparse teacher.
template <class D>
cudaError_t launch_sparse(const Call& call, const D& functor, const SparseCall& teacher, cudaStream_t stream);

}  // namespace cuda
}  // namespace fastkd
