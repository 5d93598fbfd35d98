// A file per divergence, so that they compile in parallel.
#include "dense_dispatch.cuh"

namespace fastkd {
namespace cuda {

template cudaError_t launch_dense<AlphaBeta>(const DenseArgs&, const AlphaBeta&, cudaStream_t);

}  // namespace cuda
}  // namespace fastkd
