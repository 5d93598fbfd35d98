// One row from the statistics to the gradients: the sweeps in order, two of them, or three for divergences
// with sums of their own. A phase is a part of this; the row's record connects the phases. The two kernels,
// kernel_streaming.cuh and kernel_cluster.cuh, differ in where a row's logits are during the sweeps.
#pragma once

#include "cluster_shape.h"
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

// A row is left out, it becomes NaN because its label does not exist, or it runs.
enum class Fate { kIgnored, kWrong, kRuns };

template <class Context>
__device__ __forceinline__ Fate fate_of(const Call& call, unsigned row) {
  constexpr bool kExtra = Context::kHasExtra;
  const bool finishes = !kExtra || call.phase == Phase::kAll || call.phase == Phase::kFinish;
  // Both are read at once: the second would otherwise wait for the comparison of the first.
  const float loss_scale = call.loss_scale[row], grad_scale = call.grad_scale[row];
  bool counts = loss_scale != 0 || grad_scale != 0, known = true;
  if (call.labels) {
    const int64_t label = call.labels[row];
    counts = counts && label != call.ignore_index;
    known = (label >= 0 && label < call.vocab) || (kExtra && call.sharded);
  }
  if (!counts) return Fate::kIgnored;
  return finishes && !known ? Fate::kWrong : Fate::kRuns;
}

// The last warp finds the row that this block takes next and that runs, so that it can be fetched during the
// last sweep. A block takes no more rows than a warp has lanes.
template <class Context>
__device__ __forceinline__ void look_ahead(const Context& row, RowIndex index) {
  if constexpr (Context::Place::kManyRows) {
    static_assert(kMostRows <= kWarp, "a lane for each row");
    const unsigned lane = threadIdx.x - (blockDim.x - kWarp), step = Context::Place::count();
    if (lane >= kWarp) return;
    const unsigned candidate = index.row + (lane + 1) * step;
    const bool runs = candidate < row.call.rows && fate_of<Context>(row.call, candidate) == Fate::kRuns;
    int first[1] = {runs ? static_cast<int>(lane) : INT_MAX};
    reduce_lanes<First>(first);
    if (lane != 0) return;
    if (first[0] == INT_MAX) return row.place.plan_none();
    constexpr bool kTeacher = Context::kTeacher;
    using E = typename Context::Element;
    const RowIndex next = RowIndex::of(index.row + (first[0] + 1) * step, row.call.inner);
    row.place.template plan<E, kTeacher>(pair_of<E, kTeacher>(row.call, next), row.call.vocab);
  }
}

// Lets the block's first warp compute numbers of a row, and all threads read them. The last warp does other
// work meanwhile. Each place that calls this has a lambda of its own, and so memory of its own: no warp
// overwrites what a slower one has yet to read.
template <class Context, class Work, class Other>
__device__ __forceinline__ void by_first_warp(Context& row, const Work& work, const Other& other) {
  constexpr int kWords = sizeof(RowNumbers) / sizeof(uint32_t);
  __shared__ uint4 published[kPacketVectors<kWords>];
  RowNumbers& numbers = row;
  uint32_t word[kWords];
  if (threadIdx.x < kWarp) {
    work();
    memcpy(word, &numbers, sizeof(word));
    uint4 packed[kPacketVectors<kWords>];
    pack_packet(word, packed);
    if (threadIdx.x == 0) {
#pragma unroll
      for (int i = 0; i < kPacketVectors<kWords>; ++i) published[i] = packed[i];
    }
  } else {
    other();
  }
  __syncthreads();
  row.place.release();
  read_packet<kWords>(Packets::at(published, 1), 0, word);
  memcpy(&numbers, word, sizeof(word));
}

// Computes the divergence from the row's sums, and writes the results that exist once per row. `loss` is the
// rest of the loss, `nll` the cross-entropy for the metrics. Values that are read once per row are read where
// they are needed, which keeps registers free during the sweeps.
template <class Context>
__device__ __forceinline__ void write_results(Context& row, RowIndex index, const Statistics& found,
                                              const Moments& moments, float loss, float nll) {
  const Call& call = row.call;
  float divergence = 0;
  if constexpr (Context::kTeacher) {
    divergence = row.functor.value(row.divergence);
    loss += call.kd_weight * divergence;
  }
  if (threadIdx.x == 0 && row.place.leads()) {
    const float scale = call.loss_scale[index.row];
    call.row_loss[index.row] = scale == 0 ? 0.0f : scale * loss;
  }
  if (Context::kHasExtra && call.metrics) {
    write_metrics(row, found, moments, divergence, nll, call.metrics + index.row * int64_t{metric::kCount});
  }
  row.factors = gradient_factors(row, call.grad_scale[index.row]);
}

// Finds the divergence's sums over probabilities, all of them or those of the call's phase. Returns whether
// the row goes on.
template <class Context, class Write>
__device__ __forceinline__ bool run_sums(Context& row, Phase phase, double* record, const Write& write) {
  using D = typename Context::Div;
  Row<float>& sums = row.divergence;
  const bool known = phase == Phase::kDistant || phase == Phase::kFinish;
  Packets packets{};
  if (known) {
    sums.sum[0] = static_cast<float>(record[record::kSum0]);
    sums.sum[1] = static_cast<float>(record[record::kSum1]);
  } else {
    packets = send_sums(row);
  }
  if constexpr (D::kDistant) {
    if (!known) add_sums(row, packets);
    find_log2_normalisers(row);
    if (phase == Phase::kFinish) {
      sums.distant = sums.sum[0] < 0;  // the sum is a logarithm, see Functor::kDistant
    } else if (phase != Phase::kSums && row.functor.is_distant(sums.sum)) {
      find_distant_sums(row);
    }
  }
  by_first_warp(
      row,
      [&] {
        if (!D::kDistant && !known) add_sums(row, packets);
        if (phase != Phase::kSums && phase != Phase::kDistant) return write();
        if (threadIdx.x != 0) return;
        record[record::kSum0] = sums.sum[0];
        record[record::kSum1] = sums.sum[1];
      },
      [] {});
  return phase != Phase::kSums && phase != Phase::kDistant;
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
  Packets packets{};
  float max[2], loss = 0, nll = 0;
  row.columns = static_cast<float>(call.vocab);
  const bool sweeps = phase == Phase::kAll || phase == Phase::kStatistics;
  if (!sweeps) {
    found = read_record(row, record, &moments);
    row.columns = static_cast<float>(record[record::kColumns]);
  } else if constexpr (D::kCross) {
    found = find_statistics(row, &moments);
  } else {
    packets = send_statistics(row, max);
  }
  by_first_warp(
      row,
      [&] {
        if (!D::kCross && sweeps) found = combine(row, packets, max, &moments);
        if (phase == Phase::kStatistics) return write_record(row, found, moments, record);
        loss = normalise(row, found, &nll);
        if constexpr (D::kSums == 0) write_results(row, index, found, moments, loss, nll);
      },
      [&] { look_ahead(row, index); });
  if (phase == Phase::kStatistics) return;
  if constexpr (D::kSums > 0) {
    const bool goes_on =
        run_sums(row, phase, record, [&] { write_results(row, index, found, moments, loss, nll); });
    if (!goes_on) return;
  }
  float coefficient = 0;
  if constexpr (Context::kSparse) {
    if (call.grad_student.data) coefficient = call.coefficient[index.row];
  }
  write_gradients(row, index, coefficient);
}

// Runs the row, or not: `fill` writes a value to all results of a row that does not run, `run` runs a row.
template <class Context, class Fill, class Run>
__device__ __forceinline__ void take_row(const Call& call, const typename Context::Div& functor,
                                         const typename Context::Place& place, RowIndex index,
                                         const Fill& fill, const Run& run) {
  const bool finishes = !Context::kHasExtra || call.phase == Phase::kAll || call.phase == Phase::kFinish;
  const Fate fate = fate_of<Context>(call, index.row);
  if (fate != Fate::kRuns) {
    if (finishes) fill(fate == Fate::kWrong ? NAN : 0.0f);
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
