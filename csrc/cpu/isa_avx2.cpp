#define FASTKD_ISA isa_avx2
#include "vec_avx2.h"
// after Vec
#include "isa_kernels.h"

namespace fastkd {
const CpuKernels kAvx2Kernels = {dense_rows_entry<Vec>, scale_rows_entry<Vec>};
}  // namespace fastkd
