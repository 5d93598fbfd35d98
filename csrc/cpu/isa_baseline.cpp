#define FASTKD_ISA isa_baseline
#include "vec_baseline.h"
// after VecOf
#include "isa_kernels.h"

namespace fastkd {
const CpuKernels kBaselineKernels = {dense_rows_entry<VecOf<float>>, scale_rows_entry<VecOf<float>>};
}  // namespace fastkd
