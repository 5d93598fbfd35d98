// The kernels of one divergence. This file is compiled once for each entry of divergences/list.h, in
// parallel, with FASTKD_FUNCTOR the entry's functor.
#include "../../divergences/visit.h"
#include "launch.cuh"

namespace fastkd {
namespace cuda {

template cudaError_t launch_loss<FASTKD_FUNCTOR>(const Call&, const FASTKD_FUNCTOR&, cudaStream_t);
template cudaError_t launch_sparse<FASTKD_FUNCTOR>(const Call&, const FASTKD_FUNCTOR&, const SparseCall&,
                                                   cudaStream_t);

}  // namespace cuda
}  // namespace fastkd
