// The kernels over an instruction set's vector type. Each isa_*.cpp includes this header once, after its Vec.
#pragma once

#include "isa.h"
#include "row_kernel.h"
#include "scale_row.h"

namespace fastkd {
inline namespace FASTKD_ISA {

template <class V>
void dense_rows_entry(const DenseParams& params, bool streamed, NextRows next, void* state) {
  dense_rows_with<V>(params, streamed, [=](int64_t* begin, int64_t* end) { return next(state, begin, end); });
}

template <class V>
void scale_rows_entry(const ScaleParams& params, NextRows next, void* state) {
  for (int64_t begin, end; next(state, &begin, &end);) {
    for (int64_t r = begin; r < end; ++r) scale_row<V>(params, r);
  }
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
