// Rows of numbers that one sweep leaves for the next. They stay in the caches while a row is worked on.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

#include "cpu.h"

namespace fastkd {
inline namespace FASTKD_ISA {

template <class R>
class KeptRows {
 public:
  // `columns` of each row can be read and written, with some more for the last vector.
  KeptRows(int rows, int64_t columns) : stride_((columns + 2 * kLine - 1) / kLine * kLine) {
    const int64_t bytes = rows * stride_ * static_cast<int64_t>(sizeof(R));
    // Page faults would cost as much as several rows.
    const bool huge = bytes >= kHuge / 2;
    align_ = std::align_val_t(huge ? kHuge : 64);
    if (bytes == 0) return;
    data_ = static_cast<R*>(::operator new(huge ? (bytes + kHuge - 1) / kHuge * kHuge : bytes, align_));
    if (huge) cpu::advise_huge_pages(data_, bytes + kHuge - 1);
  }
  ~KeptRows() {
    if (data_ != nullptr) ::operator delete(data_, align_);
  }
  KeptRows(const KeptRows&) = delete;
  KeptRows& operator=(const KeptRows&) = delete;

  R* row(int k) const { return data_ + k * stride_; }

 private:
  static constexpr int64_t kLine = 64 / sizeof(R);
  static constexpr int64_t kHuge = int64_t(2) << 20;
  int64_t stride_;
  std::align_val_t align_{64};
  R* data_ = nullptr;
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
