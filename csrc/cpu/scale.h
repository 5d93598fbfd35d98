// Computes out = grad * factor for one row.
#pragma once

#include "isa/kernels.h"
#include "simd/block_io.h"

namespace fastkd {
inline namespace FASTKD_ISA {

template <class V>
inline void scale_row(const ScaleParams& params, int64_t r) {
  using R = typename V::Real;
  const R factor = static_cast<const R*>(params.factor)[r * params.factor_stride];
  const RowPointer from = row_of(params.grad, params.inner, r), to = row_of(params.out, params.inner, r);
  if (factor == 1 && from.data == to.data) return;
  const int64_t columns = params.grad.columns;
  alignas(64) R scratch[kBlock + V::kWidth], product[kBlock + V::kWidth];
  for (int64_t start = 0; start < columns; start += kBlock) {
    const int64_t n = columns - start < kBlock ? columns - start : kBlock;
    const R* x = load_block<V>(from, start, n, scratch);
    for (int64_t i = 0; i < n; i += V::kWidth) (V::load(x + i) * V(factor)).store(product + i);
    store_block<V>(product, n, to, start, false, true);
  }
}

template <class V>
void scale_rows(const ScaleParams& params, NextRows next, void* state) {
  for (int64_t begin, end; next(state, &begin, &end);) {
    for (int64_t r = begin; r < end; ++r) scale_row<V>(params, r);
  }
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
