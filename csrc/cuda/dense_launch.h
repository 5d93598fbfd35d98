// What the host hands to the dense kernel, with all that does not depend on the row worked out.
#pragma once

#include <cuda_runtime.h>

#include "../params.h"

namespace fastkd {
namespace cuda {

// Where the exponentials at temperature 1 (cross-entropy, z-loss) come from.
enum class Soft : int { kNone, kReuse, kSquare, kSeparate };

struct DenseArgs {
  int64_t rows, inner;
  int vocab;
  Rows student, teacher, grad_student, grad_teacher;
  const int64_t* labels;
  int64_t ignore_index;
  const float* loss_scale;
  const float* grad_scale;
  float* row_loss;

  bool equal_temperatures;
  float student_to_log2, teacher_to_log2;         // log2(e) / temperature
  float inverse_temperature;                      // of the student
  float temperature_ratio;                        // student's / teacher's
  float kd_weight, kd_by_student, kd_by_teacher;  // the value's weight, and each side's gradient's

  Soft soft;
  float hard_weight;     // of the label's negative log-probability
  float uniform_weight;  // of the mean negative log-probability, label smoothing
  float z_loss;
};

// Instantiated once for each divergence, in a file of its own.
template <class D>
cudaError_t launch_dense(const DenseArgs& args, const D& divergence, cudaStream_t stream);

}  // namespace cuda
}  // namespace fastkd
