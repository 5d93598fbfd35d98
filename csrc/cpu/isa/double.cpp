// The float64 kernels, in a file apart from the other baseline kernels so that the two compile in parallel.
#define FASTKD_ISA isa_double
#include "../simd/vec_baseline.h"
// after VecOf
#include "../loss/kernel.h"
#include "../scale.h"

namespace fastkd {
const CpuKernels kDoubleKernels = {dense_rows<VecOf<double>>, scale_rows<VecOf<double>>};

void run_double_row(const DenseParams& params) {
  int64_t rows = 1;
  kDoubleKernels.dense_rows(
      params, false,
      [](void* left, int64_t* begin, int64_t* end) {
        *begin = 0;
        *end = *static_cast<int64_t*>(left);
        *static_cast<int64_t*>(left) = 0;
        return *end > 0;
      },
      &rows);
}
}  // namespace fastkd
