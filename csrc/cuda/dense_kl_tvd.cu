// A file per divergence, so that they compile in parallel.
#include "dense_dispatch.cuh"

namespace fastkd {
namespace cuda {

template cudaError_t launch_dense<KLTVD>(const DenseArgs&, const KLTVD&, cudaStream_t);

}  // namespace cuda
}  // namespace fastkd
