#define FASTKD_ISA isa_avx512
#include "../simd/vec_avx512.h"
// after Vec
#include "../loss/kernel.h"
#include "../scale.h"

namespace fastkd {
const CpuKernels kAvx512Kernels = {dense_rows<Vec>, scale_rows<Vec>};
}  // namespace fastkd
