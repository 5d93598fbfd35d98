// Host side of the dense kernel: validates the parameters and precomputes per-call constants.
#include <algorithm>

#include "../../divergences/visit.h"
#include "../api.h"
#include "../device.h"
#include "launch.h"

namespace fastkd {
namespace cuda {

namespace {

constexpr int64_t kMaxColumns = int64_t{1} << 30;  // columns are counted in 32 bits, addresses in 64
constexpr int64_t kMaxRows = 0x7fffffff;           // one block per row

bool supported(Dtype dtype) {
  return dtype == Dtype::kFloat32 || dtype == Dtype::kBFloat16 || dtype == Dtype::kFloat16;
}

bool reads_teacher(Divergence divergence) {
  return divergence != Divergence::kNoDivergence && divergence != Divergence::kOffSupport;
}

// Returns what is wrong with a call, or nullptr.
const char* fault_of(const DenseParams& p, Divergence divergence) {
  if (p.wide) return "the CUDA kernels have no float64";
  if (p.rows > kMaxRows) return "the CUDA kernels take at most 2^31 - 1 rows";
  for (const Rows* rows : {&p.student, &p.teacher, &p.grad_student, &p.grad_teacher}) {
    if (!supported(rows->dtype)) return "the CUDA kernels take float32, bfloat16 and float16 logits";
    if (rows->columns > kMaxColumns) return "the CUDA kernels take at most 2^30 columns";
  }
  if (p.grad_student.data && p.grad_student.dtype != p.student.dtype) {
    return "the student's gradient must have the dtype of its logits";
  }
  if (p.grad_teacher.data && reads_teacher(divergence) && p.grad_teacher.dtype != p.teacher.dtype) {
    return "the teacher's gradient must have the dtype of its logits";
  }
  // A shard of the vocabulary may be empty.
  if (p.vocab < (p.sharded ? 0 : 1) || p.vocab > kMaxColumns)
    return "the CUDA kernels take 1 to 2^30 columns";
  if (p.phase != Phase::kAll && p.record == nullptr) return "a phase needs the rows' records";
  const bool finishes = p.phase == Phase::kAll || p.phase == Phase::kFinish;
  if (divergence == Divergence::kOffSupport && finishes && p.grad_student.data && p.coefficient == nullptr) {
    return "off_support needs the rows' coefficients";
  }
  if (divergence == Divergence::kDecoupled && p.labels == nullptr) return "decoupled needs labels";
  return nullptr;
}

Soft soft_mode(bool wanted, double temperature) {
  if (!wanted) return Soft::kNone;
  if (temperature == 1) return Soft::kReuse;
  return temperature == 2 ? Soft::kSquare : Soft::kSeparate;
}

template <class D>
DenseArgs prepare(const DenseParams& p, const D& divergence, bool has_divergence) {
  DenseArgs a{};
  a.rows = p.rows;
  a.inner = p.inner;
  a.vocab = static_cast<int>(p.vocab);
  a.cluster = p.cluster;
  a.student = p.student;
  a.teacher = p.teacher;
  a.grad_student = p.grad_student;
  a.grad_teacher = p.grad_teacher;
  a.labels = p.labels;
  a.ignore_index = p.ignore_index;
  a.loss_scale = static_cast<const float*>(p.loss_scale);
  a.grad_scale = static_cast<const float*>(p.grad_scale);
  a.row_loss = static_cast<float*>(p.row_loss);

  a.phase = p.phase;
  a.record = p.record;
  a.metrics = static_cast<float*>(p.metrics);
  a.coefficient = static_cast<const float*>(p.coefficient);
  a.sharded = p.sharded;
  a.kd_metric = static_cast<float>(p.kd_metric);
  a.label_smoothing = static_cast<float>(p.label_smoothing);

  // Without a divergence its temperature has no meaning (except for metrics and records): the row is computed
  // at temperature 1.
  const bool at_one = !has_divergence && !has_extras(a);
  const double student = at_one ? 1 : p.temperature, teacher = at_one ? 1 : p.teacher_temperature;
  a.equal_temperatures = student == teacher;
  a.student_to_log2 = static_cast<float>(kLog2e / student);
  a.teacher_to_log2 = static_cast<float>(kLog2e / teacher);
  // A few powers of 2 at the lowest temperature in use.
  a.raise_margin = static_cast<float>(8 / kLog2e * std::min({student, teacher, 1.0}));
  a.inverse_temperature = static_cast<float>(1 / student);
  a.temperature_ratio = static_cast<float>(student / teacher);
  a.kd_weight = static_cast<float>(p.kd_weight);
  a.kd_by_student = static_cast<float>(p.kd_weight / student);
  a.kd_by_teacher = static_cast<float>(p.kd_weight / teacher);
  for (int k = 0; k < D::kStreams; ++k) {
    a.teacher_power[k] = static_cast<float>(divergence.teacher_power(k));
    a.total_power[k] = static_cast<float>(divergence.teacher_power(k) + divergence.student_power(k));
  }

  const double cross_entropy = p.labels ? p.ce_weight : 0;
  const bool measured = p.labels && p.metrics;
  a.needs_label = cross_entropy != 0 || measured || D::kSplitsLabel;
  a.sum_logits = (cross_entropy != 0 || measured) && p.label_smoothing != 0;
  a.soft_gradient = cross_entropy != 0 || p.z_loss != 0;
  a.soft = soft_mode(a.soft_gradient || measured, student);
  a.hard_weight = static_cast<float>(cross_entropy * (1 - p.label_smoothing));
  a.uniform_weight = static_cast<float>(cross_entropy * p.label_smoothing);
  a.z_loss = static_cast<float>(p.z_loss);
  return a;
}

}  // namespace

const char* dense_rows(const DenseParams& params, int device, void* stream) {
  const Divergence divergence = params.kd_weight == 0 ? Divergence::kNoDivergence : params.divergence;
  if (const char* fault = fault_of(params, divergence)) return fault;
  if (params.rows <= 0) return nullptr;

  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return describe(guard.error());
  cudaError_t error = cudaErrorInvalidValue;
  visit_divergence(divergence, params.alpha, params.beta, [&](const auto& functor) {
    const DenseArgs args = prepare(params, functor, divergence != Divergence::kNoDivergence);
    error = launch_dense(args, functor, static_cast<cudaStream_t>(stream));
  });
  return describe(error);
}

}  // namespace cuda
}  // namespace fastkd
