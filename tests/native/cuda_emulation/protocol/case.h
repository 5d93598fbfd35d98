// A random call of a cluster kernel, with its tensors.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "csrc/cpu/simd/half.h"
#include "csrc/params.h"
#include "reference.h"

namespace protocol {

// Memory for rows of logits, of which the first begins `offset` elements behind a boundary of 16 bytes. The
// memory around the rows keeps a mark, which shows what a kernel writes there.
class Tensor {
 public:
  static constexpr unsigned char kMark = 0x5a;

  Tensor(fastkd::Dtype dtype, int64_t rows, int64_t stride, int64_t offset)
      : dtype_(dtype),
        element_(dtype == fastkd::Dtype::kFloat32 ? 4 : 2),
        rows_(rows),
        stride_(stride),
        memory_(static_cast<size_t>(rows * stride * element_) + 2 * kMargin, kMark) {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    first_ = static_cast<int64_t>(kMargin / 2 + (16 - address % 16) % 16) + offset * element_;
  }

  fastkd::Rows rows() { return {memory_.data() + first_, dtype_, rows_ * stride_, stride_, 1, stride_}; }

  void set(int64_t row, int64_t column, float value) {
    char* const at = address(row, column);
    if (dtype_ == fastkd::Dtype::kFloat32) {
      std::memcpy(at, &value, 4);
    } else {
      const uint16_t bits = fastkd::to_bf16(value);
      std::memcpy(at, &bits, 2);
    }
  }

  double get(int64_t row, int64_t column) {
    const char* const at = address(row, column);
    if (dtype_ == fastkd::Dtype::kFloat32) {
      float value;
      std::memcpy(&value, at, 4);
      return value;
    }
    uint16_t bits;
    std::memcpy(&bits, at, 2);
    return fastkd::from_bf16(bits);
  }

  Vector row(int64_t row, int64_t columns) {
    Vector values;
    for (int64_t i = 0; i < columns; ++i) values.push_back(get(row, i));
    return values;
  }

  bool margins_are_intact() const {
    const auto end = first_ + rows_ * stride_ * element_;
    for (int64_t i = 0; i < static_cast<int64_t>(memory_.size()); ++i) {
      if ((i < first_ || i >= end) && static_cast<unsigned char>(memory_[i]) != kMark) return false;
    }
    return true;
  }

 private:
  static constexpr size_t kMargin = 256;

  char* address(int64_t row, int64_t column) {
    return memory_.data() + first_ + (row * stride_ + column) * element_;
  }

  fastkd::Dtype dtype_;
  int64_t element_, rows_, stride_, first_;
  std::vector<char> memory_;
};

struct Case {
  explicit Case(uint64_t seed);

  std::string describe() const;
  // Returns what is wrong with the results of the call, or an empty string.
  std::string fault_of_results();

  std::mt19937_64 rng;
  fastkd::DenseParams params;
  fastkd::Dtype dtype, teacher_dtype;
  int64_t stride, offset;
  int clusters;  // that the device runs at once
  bool in_place, far, for_teacher;

 private:
  template <class T>
  T one_of(std::initializer_list<T> choices) {
    return choices.begin()[rng() % choices.size()];
  }
  void fill(Tensor& tensor);
  void point_to_tensors();
  bool is_near(Tensor& found, int64_t row, const Vector& exact, int64_t columns);

  std::vector<Tensor> tensors_;  // student, teacher, and their gradients
  std::vector<Vector> student_, teacher_;
  std::vector<int64_t> labels_;
  std::vector<float> loss_scale_, grad_scale_, row_loss_;
};

}  // namespace protocol
