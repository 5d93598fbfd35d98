// The dense kernel: one block runs a row through two sweeps (three for divergences with sums of their own):
// the statistics of both rows, the divergence's sums, the gradient. Nothing is kept between sweeps, so any
// vocabulary fits. A phase is a part of this; the row's record connects the phases.
#pragma once

#include "metrics.cuh"
#include "record.cuh"
#include "sweep2_sums.cuh"
#include "sweep3_gradient.cuh"
#include "value.cuh"

namespace fastkd {
namespace cuda {

// The threads of a block, and the blocks that a multiprocessor has to hold. Together they bound the registers
// per thread to 64, 80, 96 or 128. Where logarithms, powers, a label treated apart or extras need more than
// 64, fewer threads with more registers each are better than spilling.
template <class D, class E>
struct BlockShape {
  static constexpr bool kExtra = DenseRow<D, E, OneBlock>::kHasExtra;
  static constexpr bool kMore = D::kSums > 0 || D::kCross || D::kSplitsLabel;
  static constexpr bool kMost = D::kStreams == 3 || (kExtra && D::kLog);
  static constexpr int kThreads = kMost ? 256 : kExtra ? 320 : kMore ? 256 : 512;
  static constexpr int kBlocks = kMost || kExtra || !kMore ? 2 : 3;
};

// Writes what run_row() does not write: zeros to gradients in columns that do not exist; and, for rows that
// do not run, `value` to everything.
template <class AnyRow>
__device__ __forceinline__ void fill_rest(const DenseArgs& args, const typename AnyRow::Place& place,
                                          int64_t index, bool runs, float value) {
  using E = typename AnyRow::Element;
  if (!runs && threadIdx.x == 0 && place.leads()) {
    args.row_loss[index] = value;
    if (AnyRow::kHasExtra && args.metrics) {
      for (int k = 0; k < metric::kCount; ++k) args.metrics[index * metric::kCount + k] = value;
    }
  }
  const int begin = runs ? args.vocab : 0;
  fill_gradient<E>(args, place, args.grad_student, index, begin, args.vocab, value);
  fill_gradient<E>(args, place, args.grad_student, index, args.vocab, args.grad_student.columns, 0.0f);
  if constexpr (AnyRow::kTeacher) {
    fill_gradient<E>(args, place, args.grad_teacher, index, begin, args.vocab, value);
    fill_gradient<E>(args, place, args.grad_teacher, index, args.vocab, args.grad_teacher.columns, 0.0f);
  } else {
    clear_gradient(args, place, args.grad_teacher, index);
  }
}

template <class AnyRow>
__device__ __forceinline__ void run_row(AnyRow& r, int64_t index) {
  using D = typename AnyRow::Div;
  const DenseArgs& args = r.args;
  const Phase phase = AnyRow::kHasExtra ? args.phase : Phase::kAll;
  double* const record = AnyRow::kHasExtra ? args.record + index * record::kCount : nullptr;

  __shared__ Moments moments;
  Totals found;
  r.row.columns = static_cast<float>(args.vocab);
  if (phase == Phase::kAll || phase == Phase::kStatistics) {
    found = find_statistics(r, index, &moments);
    if (phase == Phase::kStatistics) return write_record(r, found, moments, record);
  } else {
    found = read_record(r, record, &moments);
    r.row.columns = static_cast<float>(record[record::kColumns]);
  }
  float nll = 0, divergence = 0;
  float loss = settle(r, found, &nll);
  if constexpr (D::kSums > 0) {
    Row<float>& sums = r.row.divergence;
    if (phase == Phase::kDistant || phase == Phase::kFinish) {
      sums.sum[0] = static_cast<float>(record[record::kSum0]);
      sums.sum[1] = static_cast<float>(record[record::kSum1]);
    } else {
      find_sums(r);
    }
    if constexpr (D::kDistant) {
      find_bits(r);
      if (phase == Phase::kFinish) {
        sums.distant = sums.sum[0] < 0;  // the sum is a logarithm, see Functor::kDistant
      } else if (phase != Phase::kSums && r.divergence.is_distant(sums.sum)) {
        find_distant_sums(r);
      }
    }
    if (phase == Phase::kSums || phase == Phase::kDistant) {
      if (threadIdx.x == 0) {
        record[record::kSum0] = r.row.divergence.sum[0];
        record[record::kSum1] = r.row.divergence.sum[1];
      }
      return;
    }
  }
  if constexpr (AnyRow::kTeacher) {
    divergence = r.divergence.value(r.row.divergence);
    loss += args.kd_weight * divergence;
  }
  // Values that are read once per row are read where they are needed, which keeps registers free during the
  // sweeps.
  if (threadIdx.x == 0 && r.place.leads()) {
    const float scale = args.loss_scale[index];
    args.row_loss[index] = scale == 0 ? 0.0f : scale * loss;
  }
  if (AnyRow::kHasExtra && args.metrics) {
    write_metrics(r, found, moments, divergence, nll, args.metrics + index * metric::kCount);
  }

  write_gradients(r, index);
}

template <class AnyRow>
__device__ __forceinline__ void take_row(const DenseArgs& args, const typename AnyRow::Div& divergence,
                                         const typename AnyRow::Place& place, int64_t index) {
  constexpr bool kExtra = AnyRow::kHasExtra;
  const bool finishes = !kExtra || args.phase == Phase::kAll || args.phase == Phase::kFinish;
  bool read = args.loss_scale[index] != 0 || args.grad_scale[index] != 0, known = true;
  if (args.labels) {
    const int64_t label = args.labels[index];
    read = read && label != args.ignore_index;
    known = (label >= 0 && label < args.vocab) || (kExtra && args.sharded);
  }
  const bool runs = read && (known || !finishes);
  // Done first, so that its arguments need not stay in registers during the sweeps. Padding columns are never
  // read.
  if (finishes) fill_rest<AnyRow>(args, place, index, runs, read ? NAN : 0.0f);
  if (!runs) return;
  AnyRow row(args, divergence, place, index);
  run_row(row, index);
}

template <class D, class E>
__global__ void __launch_bounds__(BlockShape<D, E>::kThreads, BlockShape<D, E>::kBlocks)
    dense_kernel(const DenseArgs args, const D divergence) {
  const OneBlock place;
  take_row<DenseRow<D, E, OneBlock>>(args, divergence, place, blockIdx.x);
}

}  // namespace cuda
}  // namespace fastkd
