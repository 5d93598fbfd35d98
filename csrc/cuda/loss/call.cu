// Host side of a loss: validates the parameters, precomputes what is the same for all rows, and launches.
#include <algorithm>

#include "../../divergences/visit.h"
#include "../api.h"
#include "../device.h"
#include "cluster_shape.h"
#include "launch.h"

namespace fastkd {
namespace cuda {

namespace {

constexpr int64_t kMaxColumns = int64_t{1} << 30;  // columns are counted in 32 bits, addresses in 64
constexpr int64_t kMaxRows = 0x7fffffff;           // one block per row

bool supported(Dtype dtype) {
  return dtype == Dtype::kFloat32 || dtype == Dtype::kBFloat16 || dtype == Dtype::kFloat16;
}

// Returns what is wrong with a call of the divergence D, or nullptr.
template <class D>
const char* fault_of(const DenseParams& p) {
  if (p.wide) return "the CUDA kernels have no float64";
  if (p.rows > kMaxRows) return "the CUDA kernels take at most 2^31 - 1 rows";
  for (const Rows* rows : {&p.student, &p.teacher, &p.grad_student, &p.grad_teacher}) {
    if (!supported(rows->dtype)) return "the CUDA kernels take float32, bfloat16 and float16 logits";
    if (rows->columns > kMaxColumns) return "the CUDA kernels take at most 2^30 columns";
  }
  if (p.grad_student.data && p.grad_student.dtype != p.student.dtype) {
    return "the student's gradient must have the dtype of its logits";
  }
  if (p.grad_teacher.data && D::kReadsTeacher && p.grad_teacher.dtype != p.teacher.dtype) {
    return "the teacher's gradient must have the dtype of its logits";
  }
  // A shard of the vocabulary may be empty.
  if (p.vocab < (p.sharded ? 0 : 1) || p.vocab > kMaxColumns)
    return "the CUDA kernels take 1 to 2^30 columns";
  if (p.phase != Phase::kAll && p.record == nullptr) return "a phase needs the rows' records";
  if (D::kSparseTeacher && p.phase == Phase::kAll &&
      (p.sparse.entries < 1 || p.sparse.entries > SparseTeacher::kMaxEntriesOnGpu)) {
    return "the CUDA kernels take no rows without entries of a sparse teacher, nor with so many";
  }
  if (D::kSparseTeacher && p.phase == Phase::kFinish && p.grad_student.data && p.coefficient == nullptr) {
    return "the gradient to a sparse teacher needs the rows' coefficients";
  }
  if (D::kSplitsLabel && p.labels == nullptr) return "a divergence that treats the label apart needs labels";
  return nullptr;
}

CeSoftmax ce_softmax_mode(bool wanted, double temperature) {
  if (!wanted) return CeSoftmax::kNone;
  if (temperature == 1) return CeSoftmax::kReuse;
  return temperature == 2 ? CeSoftmax::kSquare : CeSoftmax::kSeparate;
}

template <class D>
Call prepare(const DenseParams& p, const D& functor) {
  Call call{};
  call.rows = p.rows;
  call.inner = p.inner;
  call.vocab = static_cast<int>(p.vocab);
  call.cluster = p.cluster;
  call.cluster_rows = std::min(p.cluster_rows, kMostRows);
  call.student = p.student;
  call.teacher = p.teacher;
  call.grad_student = p.grad_student;
  call.grad_teacher = p.grad_teacher;
  call.labels = p.labels;
  call.ignore_index = p.ignore_index;
  call.loss_scale = static_cast<const float*>(p.loss_scale);
  call.grad_scale = static_cast<const float*>(p.grad_scale);
  call.row_loss = static_cast<float*>(p.row_loss);

  call.phase = p.phase;
  call.record = p.record;
  call.metrics = static_cast<float*>(p.metrics);
  call.coefficient = static_cast<const float*>(p.coefficient);
  call.sharded = p.sharded;
  call.kd_metric = static_cast<float>(p.kd_metric);
  call.label_smoothing = static_cast<float>(p.label_smoothing);

  // Without a divergence its temperature has no meaning (except for metrics and records): the row is computed
  // at temperature 1.
  const bool has_divergence = D::kReadsTeacher || D::kSparseTeacher;
  const bool at_one = !has_divergence && !has_extras(call);
  const double student = at_one ? 1 : p.temperature, teacher = at_one ? 1 : p.teacher_temperature;
  call.equal_temperatures = student == teacher;
  call.log2_scale_s = static_cast<float>(kLog2e / student);
  call.log2_scale_t = static_cast<float>(kLog2e / teacher);
  // A few powers of 2 at the lowest temperature in use.
  call.raise_margin = static_cast<float>(8 / kLog2e * std::min({student, teacher, 1.0}));
  call.inverse_temperature = static_cast<float>(1 / student);
  call.temperature_ratio = static_cast<float>(student / teacher);
  call.kd_weight = static_cast<float>(p.kd_weight);
  call.kd_by_student = static_cast<float>(p.kd_weight / student);
  call.kd_by_teacher = static_cast<float>(p.kd_weight / teacher);
  for (int k = 0; k < D::kStreams; ++k) {
    call.teacher_power[k] = static_cast<float>(functor.teacher_power(k));
    call.total_power[k] = static_cast<float>(functor.teacher_power(k) + functor.student_power(k));
  }

  const double cross_entropy = p.labels ? p.ce_weight : 0;
  const bool measured = p.labels && p.metrics;
  call.needs_label = cross_entropy != 0 || measured || D::kSplitsLabel;
  call.sum_logits = (cross_entropy != 0 || measured) && p.label_smoothing != 0;
  call.ce_gradient = cross_entropy != 0 || p.z_loss != 0;
  call.ce_softmax = ce_softmax_mode(call.ce_gradient || measured, student);
  call.label_weight = static_cast<float>(cross_entropy * (1 - p.label_smoothing));
  call.smoothing_weight = static_cast<float>(cross_entropy * p.label_smoothing);
  call.z_loss = static_cast<float>(p.z_loss);
  return call;
}

template <class D>
SparseCall prepare_sparse(const DenseParams& p, const D& functor) {
  const SparseTeacher& teacher = p.sparse;
  SparseCall call{};
  call.indices = teacher.indices;
  call.logprobs = static_cast<const float*>(teacher.logprobs);
  call.grad = static_cast<float*>(teacher.grad);
  call.entries = static_cast<int>(teacher.entries);
  call.tail = teacher.tail;
  call.has_rest = teacher.has_rest;
  call.temperature = p.temperature;
  call.teacher_temperature = p.teacher_temperature;
  call.class_temperature = teacher.class_temperature;
  call.most_mass = teacher.most_mass;
  for (int k = 0; k < D::kStreams; ++k) {
    call.teacher_power[k] = functor.teacher_power(k);
    call.student_power[k] = functor.student_power(k);
  }
  return call;
}

template <class D>
cudaError_t launch(const DenseParams& params, const D& functor, cudaStream_t stream) {
  const Call call = prepare(params, functor);
  if constexpr (D::kSparseTeacher) {
    if (params.phase == Phase::kAll) {
      cudaError_t error = cudaErrorInvalidValue;
      visit_divergence(params.sparse.divergence, params.alpha, params.beta, [&](const auto& of_classes) {
        error = launch_sparse(call, of_classes, prepare_sparse(params, of_classes), stream);
      });
      return error;
    }
  }
  return launch_loss(call, functor, stream);
}

template <class D>
const char* run(const DenseParams& params, const D& functor, int device, cudaStream_t stream) {
  if (const char* fault = fault_of<D>(params)) return fault;
  if (params.rows <= 0) return nullptr;
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return describe(guard.error());
  return describe(launch(params, functor, stream));
}

}  // namespace

const char* dense_rows(const DenseParams& params, int device, void* stream) {
  const char* fault = "there is no such divergence";
  visit_divergence(divergence_of(params), params.alpha, params.beta, [&](const auto& functor) {
    fault = run(params, functor, device, static_cast<cudaStream_t>(stream));
  });
  return fault;
}

}  // namespace cuda
}  // namespace fastkd
