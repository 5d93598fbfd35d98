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
  const int64_t size = size_of(params.dtype);
  char* in = static_cast<char*>(const_cast<void*>(params.grad)) + r * params.grad_stride * size;
  char* out = static_cast<char*>(params.out) + r * params.out_stride * size;
  if (factor == 1 && in == out) return;
  const RowPointer from{in, params.dtype, size}, to{out, params.dtype, size};
  alignas(64) R scratch[kBlock + V::kWidth], product[kBlock + V::kWidth];
  for (int64_t start = 0; start < params.columns; start += kBlock) {
    const int64_t n = params.columns - start < kBlock ? params.columns - start : kBlock;
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
