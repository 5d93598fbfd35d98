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
  KeptRows(int rows, int64_t columns) : stride_((columns + kLine + kPage - 1) / kPage * kPage + kApart) {
    const int64_t bytes = rows == 0 ? 0 : (rows * stride_ + kApart) * static_cast<int64_t>(sizeof(R));
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

  R* row(int k) const { return data_ + kApart + k * stride_; }

 private:
  static constexpr int64_t kLine = 64 / sizeof(R), kPage = 4096 / sizeof(R);
  // Where logits are a power of two apart, rows that began where they do in a page would share the caches'
  // sets with them, and their stores would pass for ones to the logits that are read next.
  static constexpr int64_t kApart = 21 * kLine;
  static constexpr int64_t kHuge = int64_t(2) << 20;
  int64_t stride_;
  std::align_val_t align_{64};
  R* data_ = nullptr;
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
