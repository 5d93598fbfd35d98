// What crosses from the bindings to the kernels: plain numbers and addresses, no framework.
#pragma once

#include <cstdint>

namespace fastkd {

enum class Dtype : int { kFloat32, kBFloat16, kFloat16, kFloat64 };

enum class Divergence : int { kNone, kForwardKL, kReverseKL, kJSD };

// Rows of logits or of their gradient. Row r lies at outer_stride * (r / inner) + inner_stride * (r % inner),
// with `inner` of the call; strides count elements.
struct Rows {
  void* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
  int64_t outer_stride = 0;
  int64_t inner_stride = 0;
  int64_t column_stride = 1;
  int64_t columns = 0;
};

struct DenseParams {
  int64_t rows = 0;
  int64_t inner = 1;
  int64_t vocab = 0;  // columns that exist; the rest of a gradient row is zero
  Rows student, teacher, grad_student, grad_teacher;  // a gradient with no data is not wanted
  const int64_t* labels = nullptr;
  // float, or double where `wide`
  const void* loss_scale = nullptr;
  const void* grad_scale = nullptr;
  void* row_loss = nullptr;
  bool wide = false;

  Divergence divergence = Divergence::kForwardKL;  // kNone: the teacher is not read
  double beta = 0.5;
  double temperature = 1.0;
  double teacher_temperature = 1.0;
  double kd_weight = 1.0;
  double ce_weight = 0.0;
  double label_smoothing = 0.0;
  double z_loss = 0.0;
  int64_t ignore_index = -100;
};

// out[r, :] = grad[r, :] * factor[r * factor_stride]
struct ScaleParams {
  int64_t rows = 0;
  int64_t columns = 0;
  const void* grad = nullptr;
  void* out = nullptr;
  Dtype dtype = Dtype::kFloat32;
  int64_t grad_stride = 0;
  int64_t out_stride = 0;
  const void* factor = nullptr;  // float, or double where `wide`
  int64_t factor_stride = 0;
  bool wide = false;
};

}  // namespace fastkd
