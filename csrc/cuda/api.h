// The CUDA kernels' interface for the bindings. Plain C++: including this needs no CUDA header.
#pragma once

#include "../params.h"

namespace fastkd {
namespace cuda {

// Returns why the kernels cannot run on this device, or nullptr if they can. Works without a driver. The text
// is valid until the thread's next call.
const char* missing(int device);

// These functions queue their work on `stream` (a cudaStream_t), neither allocate nor synchronise, and return
// nullptr or what went wrong. Dtypes: float32, bfloat16, float16 in any combination; no `wide` (float64)
// calls.
const char* dense_rows(const DenseParams& params, int device, void* stream);
const char* scale_rows(const ScaleParams& params, int device, void* stream);
const char* row_weights(const WeightParams& params, int device, void* stream);
const char* totals(const TotalsParams& params, int device, void* stream);

}  // namespace cuda
}  // namespace fastkd
