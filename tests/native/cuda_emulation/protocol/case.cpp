#include "case.h"

namespace protocol {

using namespace fastkd;

namespace {

constexpr float kNotWritten = -7;
// Relative to the largest element of a row's gradient, which is itself a difference of larger numbers where
// it is small.
constexpr double kTolerance = 3e-5, kSmall = 0.1;
constexpr double kHalfUlp = 1.0 / 256;

}  // namespace

Case::Case(uint64_t seed) : rng(seed * 0x9e3779b97f4a7c15u) {
  dtype = one_of({Dtype::kFloat32, Dtype::kBFloat16});
  in_place = one_of({false, true});
  for_teacher = one_of({false, true});
  far = rng() % 8 == 0;
  params.vocab = one_of<int64_t>({5, 70, 131, 1003, 2048, 5000, 6144});
  params.cluster = one_of({1, 2, 2, 4, 4, 8});
  if (rng() % 16 == 0) {  // more shared memory than a launch has without asking
    params.vocab = 14'001;
    params.cluster = 1;
    dtype = Dtype::kBFloat16;
  }
  params.rows = params.inner = static_cast<int64_t>(1 + rng() % 5);
  clusters = static_cast<int>(1 + rng() % 3);
  const bool many = rng() % 16 == 0;  // more rows than a cluster takes, most of them without a label
  if (many) {
    params.vocab = 70;
    params.rows = params.inner = 40;
  }
  stride = params.vocab + static_cast<int64_t>(rng() % 9);
  offset = static_cast<int64_t>(rng() % 9);
  params.kd_weight = rng() % 8 == 0 ? 0 : 0.7;
  params.divergence = one_of({Divergence::kForwardKL, Divergence::kJSD});
  params.beta = 0.3;
  params.temperature = params.teacher_temperature = one_of({1.0, 1.5, 2.0});
  params.ce_weight = one_of({0.0, 0.4});
  params.label_smoothing = 0.1;
  params.z_loss = one_of({0.0, 1e-3});
  if (far) params.z_loss = 0;  // the square of such a log-sum-exp has lost its digits
  teacher_dtype = dtype;
  if (params.divergence == Divergence::kForwardKL && rng() % 4 == 0) {  // kernels.cu has it for no other one
    teacher_dtype = dtype == Dtype::kFloat32 ? Dtype::kBFloat16 : Dtype::kFloat32;
  }

  for (int i = 0; i < 4; ++i)
    tensors_.emplace_back(i % 2 ? teacher_dtype : dtype, params.rows, stride, offset);
  for (int i = 0; i < 2; ++i) fill(tensors_[i]);
  for (int64_t row = 0; row < params.rows; ++row) {
    student_.push_back(tensors_[0].row(row, params.vocab));
    teacher_.push_back(tensors_[1].row(row, params.vocab));
    const bool ignored = rng() % 8 < (many ? 6 : 1);
    labels_.push_back(ignored ? params.ignore_index : static_cast<int64_t>(rng() % params.vocab));
  }
  loss_scale_.assign(params.rows, 0.7f);
  grad_scale_.assign(params.rows, 1.3f);
  row_loss_.assign(params.rows, kNotWritten);
  point_to_tensors();
}

void Case::fill(Tensor& tensor) {
  std::normal_distribution<float> normal(0, 3);
  for (int64_t row = 0; row < params.rows; ++row) {
    for (int64_t i = 0; i < stride; ++i) {
      const bool exists = i < params.vocab;
      tensor.set(row, i, exists ? normal(rng) + (far ? 20'000.0f : 0.0f) : NAN);
    }
  }
}

void Case::point_to_tensors() {
  params.student = tensors_[0].rows();
  params.teacher = tensors_[1].rows();
  params.grad_student = tensors_[in_place ? 0 : 2].rows();
  if (for_teacher) params.grad_teacher = tensors_[in_place ? 1 : 3].rows();
  params.labels = labels_.data();
  params.loss_scale = loss_scale_.data();
  params.grad_scale = grad_scale_.data();
  params.row_loss = row_loss_.data();
}

std::string Case::describe() const {
  std::string text = dtype == Dtype::kFloat32 ? "float32" : "bfloat16";
  if (teacher_dtype != dtype) text += " and the other dtype";
  text += ", " + std::to_string(params.vocab) + " columns, " + std::to_string(params.rows) + " rows, ";
  text += std::to_string(params.cluster) + " blocks per row, " + std::to_string(clusters);
  text += " clusters, offset " + std::to_string(offset);
  text += params.kd_weight == 0                   ? ", no divergence"
          : params.divergence == Divergence::kJSD ? ", JSD"
                                                  : ", KL";
  if (in_place) text += ", in place";
  if (for_teacher) text += ", with the teacher's gradient";
  if (far) text += ", far from 0";
  return text;
}

bool Case::is_near(Tensor& found, int64_t row, const Vector& exact, int64_t columns) {
  double largest = kSmall;
  for (const double value : exact) largest = std::max(largest, std::fabs(value));
  const double rounding = found.rows().dtype == Dtype::kFloat32 ? 0 : kHalfUlp;
  for (int64_t i = 0; i < columns; ++i) {
    const double value = found.get(row, i);
    const double expected = i < static_cast<int64_t>(exact.size()) ? exact[i] : 0;  // padding is cleared
    const double error = std::fabs(value - expected);
    if (!(error <= kTolerance * largest + rounding * std::fabs(expected) + 1e-30)) return false;
  }
  return true;
}

std::string Case::fault_of_results() {
  for (int64_t row = 0; row < params.rows; ++row) {
    const bool ignored = labels_[row] == params.ignore_index;
    const RowResult exact = ignored ? RowResult{0, Vector(params.vocab), Vector(params.vocab)}
                                    : reference_row(params, student_[row], teacher_[row], labels_[row],
                                                    loss_scale_[row], grad_scale_[row]);
    const std::string of_row = " of row " + std::to_string(row) + " is wrong";
    if (!(std::fabs(row_loss_[row] - exact.loss) <= 1e-4 * (1 + std::fabs(exact.loss)))) {
      return "the loss" + of_row + ": " + std::to_string(row_loss_[row]) + ", not " +
             std::to_string(exact.loss);
    }
    if (!is_near(tensors_[in_place ? 0 : 2], row, exact.grad_student, stride)) {
      return "the student's gradient" + of_row;
    }
    if (for_teacher && !is_near(tensors_[in_place ? 1 : 3], row, exact.grad_teacher, stride)) {
      return "the teacher's gradient" + of_row;
    }
  }
  for (const Tensor& tensor : tensors_) {
    if (!tensor.margins_are_intact()) return "the kernel writes around the tensors";
  }
  return "";
}

}  // namespace protocol
