#define FASTKD_ISA isa_baseline
#if defined(__GNUC__)
#include "../simd/vec_128.h"
#else
#include "../simd/vec_baseline.h"
#endif
// after Vec
#include "../loss/kernel.h"
#include "../scale.h"

namespace fastkd {
#if !defined(__GNUC__)
using Vec = VecOf<float>;
#endif
const CpuKernels kBaselineKernels = {dense_rows<Vec>, scale_rows<Vec>};
}  // namespace fastkd
