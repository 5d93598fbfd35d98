#define FASTKD_ISA isa_baseline
#include "../simd/vec_baseline.h"
// after VecOf
#include "../loss/kernel.h"
#include "../scale.h"

namespace fastkd {
const CpuKernels kBaselineKernels = {dense_rows<VecOf<float>>, scale_rows<VecOf<float>>};
}  // namespace fastkd
