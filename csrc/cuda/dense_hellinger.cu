// A file per divergence, so that they compile in parallel.
#include "dense_dispatch.cuh"

namespace fastkd {
namespace cuda {

template cudaError_t launch_dense<Hellinger>(const DenseArgs&, const Hellinger&, cudaStream_t);

}  // namespace cuda
}  // namespace fastkd
