// Host side of the dense kernel: checks what the kernel takes for granted, works out what no row changes.
#include "../math/visit.h"
#include "dense_launch.h"
#include "device.h"
#include "launch.h"

namespace fastkd {
namespace cuda {

namespace {

constexpr double kLog2E = 1.4426950408889634;
constexpr int64_t kMaxColumns = int64_t{1} << 30;  // columns are counted in 32 bits, addresses in 64

bool supported(Dtype dtype) {
  return dtype == Dtype::kFloat32 || dtype == Dtype::kBFloat16 || dtype == Dtype::kFloat16;
}

Soft soft_mode(bool wanted, double temperature) {
  if (!wanted) return Soft::kNone;
  if (temperature == 1) return Soft::kReuse;
  return temperature == 2 ? Soft::kSquare : Soft::kSeparate;
}

DenseArgs prepare(const DenseParams& p, bool divergence) {
  DenseArgs a{};
  a.rows = p.rows;
  a.inner = p.inner;
  a.vocab = static_cast<int>(p.vocab);
  a.student = p.student;
  a.teacher = p.teacher;
  a.grad_student = p.grad_student;
  a.grad_teacher = p.grad_teacher;
  a.labels = p.labels;
  a.ignore_index = p.ignore_index;
  a.loss_scale = static_cast<const float*>(p.loss_scale);
  a.grad_scale = static_cast<const float*>(p.grad_scale);
  a.row_loss = static_cast<float*>(p.row_loss);

  // Without a divergence its temperature has no meaning: the row is taken at 1.
  const double student = divergence ? p.temperature : 1, teacher = divergence ? p.teacher_temperature : 1;
  a.equal_temperatures = student == teacher;
  a.student_to_log2 = static_cast<float>(kLog2E / student);
  a.teacher_to_log2 = static_cast<float>(kLog2E / teacher);
  a.inverse_temperature = static_cast<float>(1 / student);
  a.temperature_ratio = static_cast<float>(student / teacher);
  a.kd_weight = static_cast<float>(p.kd_weight);
  a.kd_by_student = static_cast<float>(p.kd_weight / student);
  a.kd_by_teacher = static_cast<float>(p.kd_weight / teacher);

  const double cross_entropy = p.labels ? p.ce_weight : 0;
  a.soft = soft_mode(cross_entropy != 0 || p.z_loss != 0, student);
  a.hard_weight = static_cast<float>(cross_entropy * (1 - p.label_smoothing));
  a.uniform_weight = static_cast<float>(cross_entropy * p.label_smoothing);
  a.z_loss = static_cast<float>(p.z_loss);
  return a;
}

}  // namespace

const char* dense_rows(const DenseParams& params, int device, void* stream) {
  if (params.wide) return "the CUDA kernels have no float64";
  for (const Rows* rows : {&params.student, &params.teacher, &params.grad_student, &params.grad_teacher}) {
    if (!supported(rows->dtype)) return "the CUDA kernels take float32, bfloat16 and float16 logits";
    if (rows->columns > kMaxColumns) return "the CUDA kernels take at most 2^30 columns";
  }
  if (params.grad_student.data && params.grad_student.dtype != params.student.dtype) {
    return "the student's gradient must have the dtype of its logits";
  }
  if (params.grad_teacher.data && params.grad_teacher.dtype != params.teacher.dtype) {
    return "the teacher's gradient must have the dtype of its logits";
  }
  if (params.vocab <= 0 || params.vocab > kMaxColumns) return "the CUDA kernels take 1 to 2^30 columns";
  if (params.rows <= 0) return nullptr;

  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return describe(guard.error());
  const Divergence divergence = params.kd_weight == 0 ? Divergence::kNone : params.divergence;
  const DenseArgs args = prepare(params, divergence != Divergence::kNone);
  cudaError_t error = cudaErrorInvalidValue;
  visit_divergence(divergence, params.beta, [&](const auto& functor) {
    error = launch_dense(args, functor, static_cast<cudaStream_t>(stream));
  });
  return describe(error);
}

}  // namespace cuda
}  // namespace fastkd
