// The kernel for a sparse teacher: the sweeps over the student's row as in the streaming kernel, and between
// them the divergence of the row's entries.
#pragma once

#include "../../divergences/none.h"
#include "kernel.cuh"
#include "sparse_divergence.cuh"

namespace fastkd {
namespace cuda {

// Two blocks on a multiprocessor leave 96 registers to each of 320 threads, and 128 to each of 256. Three
// streams, or sums of distant rows, need more than 96.
template <class D>
constexpr int kSparseThreads = D::kStreams == 3 || D::kDistant ? 256 : 320;

using SparseContext = RowContext<OffSupport, AnyElement, OneBlock>;

// Writes `value` to all results of a row that does not run.
__device__ __forceinline__ void fill_sparse_row(const Call& call, const SparseCall& teacher, RowIndex index,
                                                float value) {
  fill_row_results<SparseContext>(call, OneBlock(), index, value);
  fill_by_logprobs(teacher, index, value);
}

template <class D>
__device__ __forceinline__ void run_sparse_row(SparseContext& row, const D& functor,
                                               const SparseCall& teacher, RowIndex index) {
  const Call& call = row.call;
  __shared__ Moments moments;
  row.columns = static_cast<float>(call.vocab);
  // Before the gradient may overwrite the logits. The first sweep has the barriers that the entries need.
  read_entries(row, teacher, index);
  const Statistics found = find_statistics(row, &moments);
  const SparseSums sums = sum_entries(row, teacher, found);
  if (sums.wrong) return fill_sparse_row(call, teacher, index, NAN);

  float nll = 0;
  const float others = normalise(row, found, &nll);
  const SparseDivergence divergence = find_divergence(functor, teacher, sums, index);
  const double loss = others + call.kd_weight * divergence.value;
  if (threadIdx.x == 0) {
    const float scale = call.loss_scale[index.row];
    call.row_loss[index.row] = scale == 0 ? 0.0f : static_cast<float>(scale * loss);
  }
  if (call.metrics) {
    float* const out = call.metrics + index.row * int64_t{metric::kCount};
    write_metrics(row, found, moments, 0.0f, nll, out);
    write_sparse_metrics(call, teacher, divergence, found.max_s, out);
  }
  write_by_logprobs(teacher, index, double{call.kd_weight} * call.grad_scale[index.row]);
  row.factors = gradient_factors(row, call.grad_scale[index.row]);
  write_gradients(row, index, static_cast<float>(divergence.coefficient));
  __syncthreads();  // before entries replace what other threads have written
  write_entries(row, teacher, index);
}

template <class D>
__global__ void __launch_bounds__(kSparseThreads<D>, 2)
    sparse_kernel(const Call call, const D functor, const SparseCall teacher) {
  const RowIndex index = RowIndex::of(blockIdx.x, call.inner);
  const OneBlock place;
  const OffSupport student_side;
  take_row<SparseContext>(
      call, student_side, place, index, [&](float value) { fill_sparse_row(call, teacher, index, value); },
      [&](SparseContext& row) { run_sparse_row(row, functor, teacher, index); });
}

}  // namespace cuda
}  // namespace fastkd
