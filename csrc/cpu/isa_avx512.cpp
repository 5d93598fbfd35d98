#define FASTKD_ISA isa_avx512
#include "vec_avx512.h"
// after Vec
#include "isa_kernels.h"

namespace fastkd {
const CpuKernels kAvx512Kernels = {dense_rows_entry<Vec>, scale_rows_entry<Vec>};
}  // namespace fastkd
