// The memory that a call's kernels may access with vectors and copies: of the logits, the columns that exist;
// of the gradients, whole rows.
#pragma once

#include "csrc/params.h"
#include "machine/global_memory.h"

namespace emulation {

inline void allow_rows(const fastkd::DenseParams& params, const fastkd::Rows& rows, int64_t columns,
                       bool for_writes) {
  // Rows whose columns are apart are accessed element by element.
  if (!rows.data || rows.column_stride != 1) return;
  const int64_t element = fastkd::element_bytes(rows.dtype);
  for (int64_t row = 0; row < params.rows; ++row) {
    const int64_t first = row / params.inner * rows.outer_stride + row % params.inner * rows.inner_stride;
    allow_memory(static_cast<const char*>(rows.data) + first * element, columns * element, for_writes);
  }
}

inline void restrict_memory_to(const fastkd::DenseParams& params) {
  restrict_memory();
  allow_rows(params, params.student, params.vocab, false);
  allow_rows(params, params.teacher, params.vocab, false);
  allow_rows(params, params.grad_student, params.grad_student.columns, true);
  allow_rows(params, params.grad_teacher, params.grad_teacher.columns, true);
}

}  // namespace emulation
