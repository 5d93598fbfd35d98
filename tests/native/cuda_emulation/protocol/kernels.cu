// The cluster kernels that the driver runs: few, because each planted fault compiles this file once. JSD has
// a sweep more than the others.
#include "csrc/cuda/loss/launch.cuh"
#include "csrc/divergences/visit.h"

namespace fastkd {
namespace cuda {

namespace {

template <class E, class D>
cudaError_t launch_in_cluster(const Call& call, const D& functor, cudaStream_t stream) {
  const ClusterShape shape = cluster_for<E, D>(call);
  return shape.blocks > 0 ? launch_cluster<E>(call, functor, shape, stream) : cudaErrorInvalidConfiguration;
}

template <class D>
cudaError_t launch_any(const Call& call, const D& functor, cudaStream_t stream) {
  return call.student.dtype == Dtype::kFloat32 ? launch_in_cluster<Float32>(call, functor, stream)
                                               : launch_in_cluster<BFloat16>(call, functor, stream);
}

}  // namespace

template <>
cudaError_t launch_loss<ForwardKL>(const Call& call, const ForwardKL& functor, cudaStream_t stream) {
  if (call.student.dtype != call.teacher.dtype) return launch_in_cluster<AnyElement>(call, functor, stream);
  return launch_any(call, functor, stream);
}

template <>
cudaError_t launch_loss<JSD>(const Call& call, const JSD& functor, cudaStream_t stream) {
  return launch_any(call, functor, stream);
}

template <>
cudaError_t launch_loss<NoDivergence>(const Call& call, const NoDivergence& functor, cudaStream_t stream) {
  return launch_any(call, functor, stream);
}

}  // namespace cuda
}  // namespace fastkd
