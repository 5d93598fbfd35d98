// One row from the statistics to the gradients: the sweeps in order, two of them, or three for divergences
// with sums of their own. A phase is a part of this; the row's record connects the phases. The two kernels,
// kernel_streaming.cuh and kernel_cluster.cuh, differ in where a row's logits are during the sweeps.
#pragma once

#include "metrics.cuh"
#include "record.cuh"
#include "sweep2_sums.cuh"
#include "sweep3_gradient.cuh"
#include "value.cuh"

namespace fastkd {
namespace cuda {

// Writes zeros to what run_row() does not write: the gradients' columns that do not exist, and the gradient
// of a teacher that is not read.
template <class Context>
__device__ __forceinline__ void fill_padding(const Call& call, const typename Context::Place& place,
                                             RowIndex index) {
  using E = typename Context::Element;
  const Rows &by_student = call.grad_student, &by_teacher = call.grad_teacher;
  if constexpr (!Context::kTeacher) clear_gradient(place, by_teacher, index);
  // Rows without padding, which are most, need no more than this comparison.
  if (max(by_student.columns, Context::kTeacher ? by_teacher.columns : 0) <= call.vocab) return;
  fill_gradient<E>(place, by_student, index, call.vocab, by_student.columns, 0.0f);
  if constexpr (Context::kTeacher) {
    fill_gradient<E>(place, by_teacher, index, call.vocab, by_teacher.columns, 0.0f);
  }
}

// Writes `value` to all results of a row that does not run, and zeros to the gradients' padding.
template <class Context>
__device__ __forceinline__ void fill_row_results(const Call& call, const typename Context::Place& place,
                                                 RowIndex index, float value) {
  using E = typename Context::Element;
  if (threadIdx.x == 0 && place.leads()) {
    call.row_loss[index.row] = value;
    if (Context::kHasExtra && call.metrics) {
      for (int k = 0; k < metric::kCount; ++k) call.metrics[index.row * int64_t{metric::kCount} + k] = value;
    }
  }
  fill_gradient<E>(place, call.grad_student, index, 0, call.vocab, value);
  if constexpr (Context::kTeacher) fill_gradient<E>(place, call.grad_teacher, index, 0, call.vocab, value);
  fill_padding<Context>(call, place, index);
}

// Runs the sweeps of one row, or the part of them that is the call's phase.
template <class Context>
__device__ __forceinline__ void run_row(Context& row, RowIndex index) {
  using D = typename Context::Div;
  const Call& call = row.call;
  const Phase phase = Context::kHasExtra ? call.phase : Phase::kAll;
  double* const record = Context::kHasExtra ? call.record + index.row * int64_t{record::kCount} : nullptr;

  __shared__ Moments moments;
  Statistics found;
  row.columns = static_cast<float>(call.vocab);
  if (phase == Phase::kAll || phase == Phase::kStatistics) {
    found = find_statistics(row, index, &moments);
    if (phase == Phase::kStatistics) return write_record(row, found, moments, record);
  } else {
    found = read_record(row, record, &moments);
    row.columns = static_cast<float>(record[record::kColumns]);
  }
  float nll = 0, divergence = 0;
  float loss = normalise(row, found, &nll);
  if constexpr (D::kSums > 0) {
    Row<float>& sums = row.divergence;
    if (phase == Phase::kDistant || phase == Phase::kFinish) {
      sums.sum[0] = static_cast<float>(record[record::kSum0]);
      sums.sum[1] = static_cast<float>(record[record::kSum1]);
    } else {
      find_sums(row);
    }
    if constexpr (D::kDistant) {
      find_log2_normalisers(row);
      if (phase == Phase::kFinish) {
        sums.distant = sums.sum[0] < 0;  // the sum is a logarithm, see Functor::kDistant
      } else if (phase != Phase::kSums && row.functor.is_distant(sums.sum)) {
        find_distant_sums(row);
      }
    }
    if (phase == Phase::kSums || phase == Phase::kDistant) {
      if (threadIdx.x == 0) {
        record[record::kSum0] = row.divergence.sum[0];
        record[record::kSum1] = row.divergence.sum[1];
      }
      return;
    }
  }
  if constexpr (Context::kTeacher) {
    divergence = row.functor.value(row.divergence);
    loss += call.kd_weight * divergence;
  }
  // Values that are read once per row are read where they are needed, which keeps registers free during the
  // sweeps.
  if (threadIdx.x == 0 && row.place.leads()) {
    const float scale = call.loss_scale[index.row];
    call.row_loss[index.row] = scale == 0 ? 0.0f : scale * loss;
  }
  if (Context::kHasExtra && call.metrics) {
    write_metrics(row, found, moments, divergence, nll, call.metrics + index.row * int64_t{metric::kCount});
  }

  float coefficient = 0;
  if constexpr (Context::kSparse) {
    if (call.grad_student.data) coefficient = call.coefficient[index.row];
  }
  write_gradients(row, index, coefficient);
}

// Decides whether the row runs: an ignored row does not, and a row whose label does not exist becomes NaN.
// `fill` writes a value to all results of a row that does not run, `run` runs a row.
template <class Context, class Fill, class Run>
__device__ __forceinline__ void take_row(const Call& call, const typename Context::Div& functor,
                                         const typename Context::Place& place, RowIndex index,
                                         const Fill& fill, const Run& run) {
  constexpr bool kExtra = Context::kHasExtra;
  const bool finishes = !kExtra || call.phase == Phase::kAll || call.phase == Phase::kFinish;
  // Both are read at once: the second would otherwise wait for the comparison of the first.
  const float loss_scale = call.loss_scale[index.row], grad_scale = call.grad_scale[index.row];
  bool read = loss_scale != 0 || grad_scale != 0, known = true;
  if (call.labels) {
    const int64_t label = call.labels[index.row];
    read = read && label != call.ignore_index;
    known = (label >= 0 && label < call.vocab) || (kExtra && call.sharded);
  }
  if (!read || (finishes && !known)) {
    if (finishes) fill(read ? NAN : 0.0f);
    return;
  }
  // The copies of a cluster begin here. What they do not need comes after them, and before the sweeps, during
  // which its arguments would occupy registers. Padding columns are never read.
  Context row(call, functor, place, index);
  if (finishes) fill_padding<Context>(call, place, index);
  run(row);
}

// The same for the sweeps of run_row().
template <class Context>
__device__ __forceinline__ void take_row(const Call& call, const typename Context::Div& functor,
                                         const typename Context::Place& place, RowIndex index) {
  take_row<Context>(
      call, functor, place, index, [&](float value) { fill_row_results<Context>(call, place, index, value); },
      [&](Context& row) { run_row(row, index); });
}

}  // namespace cuda
}  // namespace fastkd
