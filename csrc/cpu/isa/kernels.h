// The entry points of each instruction set. Files with and without ISA flags include this header; it must
// contain declarations only.
#pragma once

#include <cstdint>

#include "../../params.h"

namespace fastkd {

// Sets the next rows [*begin, *end) to work on, or returns false if there are none. The threads of a call
// share its state.
using NextRows = bool (*)(void* state, int64_t* begin, int64_t* end);

struct CpuKernels {
  void (*dense_rows)(const DenseParams&, bool streamed, NextRows next, void* state);
  void (*scale_rows)(const ScaleParams&, NextRows next, void* state);
};

extern const CpuKernels kAvx512Kernels;
extern const CpuKernels kAvx2Kernels;
extern const CpuKernels kBaselineKernels;
extern const CpuKernels kDoubleKernels;

// Runs the float64 kernel on the only row of `params`.
void run_double_row(const DenseParams& params);

}  // namespace fastkd
