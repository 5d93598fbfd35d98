// float64, apart from the other baseline kernels so that both compile at once.
#define FASTKD_ISA isa_double
#include "vec_baseline.h"
// after VecOf
#include "isa_kernels.h"

namespace fastkd {
const CpuKernels kDoubleKernels = {dense_rows_entry<VecOf<double>>, scale_rows_entry<VecOf<double>>};
}  // namespace fastkd
