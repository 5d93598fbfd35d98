#define FASTKD_ISA isa_avx2
#include "../simd/vec_avx2.h"
// after Vec
#include "../loss/kernel.h"
#include "../scale.h"

namespace fastkd {
const CpuKernels kAvx2Kernels = {dense_rows<Vec>, scale_rows<Vec>};
}  // namespace fastkd
