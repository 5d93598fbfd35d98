// A row of a sparse teacher in the block's shared memory: its entries, and all other columns as one more
// class. All columns but the entries' have a part of the student's gradient in common.
#pragma once

#include "../memory/dynamic_shared.cuh"
#include "../memory/reduce.cuh"
#include "record.cuh"
#include "sparse_call.h"

namespace fastkd {
namespace cuda {

// Arrays in the dynamic shared memory. Those of doubles have one element per entry, and then one for the
// class of all other columns.
struct SparseRow {
  double *log_p, *log_q;            // -inf where the row lacks the entry
  double *by_student, *by_teacher;  // gradients by the logarithms
  int* column;                      // negative and different from all others where the row lacks the entry
  float* logit;                     // the student's
};

inline unsigned sparse_row_bytes(int entries) {
  return static_cast<unsigned>((entries + 1) * 4 * sizeof(double) + entries * (sizeof(int) + sizeof(float)));
}

__device__ __forceinline__ SparseRow sparse_row(const SparseCall& teacher) {
  const int entries = teacher.entries, classes = entries + 1;
  auto* const doubles = reinterpret_cast<double*>(dynamic_shared());
  auto* const columns = reinterpret_cast<int*>(doubles + 4 * classes);
  return {doubles,
          doubles + classes,
          doubles + 2 * classes,
          doubles + 3 * classes,
          columns,
          reinterpret_cast<float*>(columns + entries)};
}

// Sums over the row's entries, the same in all threads.
struct SparseSums {
  bool any;               // whether the row has an entry
  bool wrong;             // whether the entries are an error, see SparseTeacher in params.h
  double mass_p, mass_q;  // probability of all entries together; 0 where the tail does not need it
};

__device__ __forceinline__ float logprob_at(const SparseCall& teacher, RowIndex index, int entry) {
  return teacher.logprobs[index.row * int64_t{teacher.entries} + entry];
}

// Copies the entries to shared memory. The caller needs a barrier before it reads entries of other threads.
template <class Context>
__device__ __forceinline__ void read_entries(const Context& row, const SparseCall& teacher, RowIndex index) {
  const SparseRow entries = sparse_row(teacher);
  const auto logits = row_of<typename Context::Element>(row.call.student, index);
  for (int i = threadIdx.x; i < teacher.entries; i += blockDim.x) {
    const int64_t column = teacher.indices[index.row * int64_t{teacher.entries} + i];
    const float logprob = logprob_at(teacher, index, i);
    const bool here = logprob != -INFINITY && column >= 0 && column < row.call.vocab;
    entries.column[i] = here ? static_cast<int>(column) : -1 - i;
    entries.logit[i] = here ? logits[column] : -INFINITY;
    entries.log_p[i] = logprob;
  }
}

// Whether another entry names the same column as entry i. Each pair of entries is compared once in the block.
__device__ __forceinline__ bool is_repeated(const SparseRow& entries, int i, int count) {
  int times = 0;
  for (int apart = 1; apart <= count / 2; ++apart) {
    const int other = i + apart < count ? i + apart : i + apart - count;
    times += entries.column[i] == entries.column[other];
  }
  return times > 0;
}

// Completes the entries that read_entries() has read, given the statistics of the student's row, and checks
// them.
template <class Context>
__device__ __forceinline__ SparseSums sum_entries(const Context& row, const SparseCall& teacher,
                                                  const Statistics& found) {
  const SparseRow entries = sparse_row(teacher);
  const float less = row.lowered ? origin().s : 0.0f;
  const bool needs_masses = teacher.has_rest || teacher.tail != Tail::kRenormalize;
  // Relative to the row maximum, where the logarithm of the normaliser is small.
  const double top = finite(found.max_s);
  const double log_z = log(double{found.z_s}) - fastkd::kLn2 * distance_of(row, found).s;
  double mass_p = 0, mass_q = 0;
  int count = 0, wrong = 0;
  for (int i = threadIdx.x; i < teacher.entries; i += blockDim.x) {
    const bool exists = entries.log_p[i] != -INFINITY;
    const float logit = entries.logit[i] - less;
    entries.logit[i] = logit;
    entries.log_q[i] = exists ? (logit - top) / teacher.temperature - log_z : -INFINITY;
    count += exists;
    wrong += (exists && entries.column[i] < 0) || is_repeated(entries, i, teacher.entries);
    if (exists && needs_masses) {
      mass_p += exp(entries.log_p[i]);
      mass_q += exp(entries.log_q[i]);
    }
  }
  double sum[] = {mass_p, mass_q, static_cast<double>(count), static_cast<double>(wrong)};
  reduce_block<SumOfDoubles>(sum);
  return {sum[2] != 0, sum[3] != 0 || sum[0] > teacher.most_mass, sum[0], sum[1]};
}

// Writes `value` to the gradients of the entries of a row that does not run, and 0 where it has no entry.
__device__ __forceinline__ void fill_by_logprobs(const SparseCall& teacher, RowIndex index, float value) {
  if (!teacher.grad) return;
  for (int i = threadIdx.x; i < teacher.entries; i += blockDim.x) {
    const bool exists = value != 0 && logprob_at(teacher, index, i) != -INFINITY;
    teacher.grad[index.row * int64_t{teacher.entries} + i] = exists ? value : 0.0f;
  }
}

}  // namespace cuda
}  // namespace fastkd
