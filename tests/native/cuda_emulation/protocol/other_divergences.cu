// The divergences that the driver does not run, and the sparse teachers of all of them; the dispatch in
// call.cu names them.
#include <type_traits>

#include "csrc/cuda/loss/launch.h"
#include "csrc/divergences/visit.h"

namespace fastkd {
namespace cuda {

template <class D>
cudaError_t launch_loss(const Call&, const D&, cudaStream_t) {
  return cudaErrorInvalidValue;
}

template <class D>
cudaError_t launch_sparse(const Call&, const D&, const SparseCall&, cudaStream_t) {
  return cudaErrorInvalidValue;
}

#define FASTKD_OTHER(name, Functor, arguments)                                          \
  template cudaError_t launch_loss<Functor>(const Call&, const Functor&, cudaStream_t); \
  template cudaError_t launch_sparse<Functor>(const Call&, const Functor&, const SparseCall&, cudaStream_t);
template <>
cudaError_t launch_loss<ForwardKL>(const Call&, const ForwardKL&, cudaStream_t);
template <>
cudaError_t launch_loss<JSD>(const Call&, const JSD&, cudaStream_t);
template <>
cudaError_t launch_loss<NoDivergence>(const Call&, const NoDivergence&, cudaStream_t);
FASTKD_DIVERGENCES(FASTKD_OTHER)

}  // namespace cuda
}  // namespace fastkd
