// Scratch buffers of one row's length, which one sweep writes and the next reads. They stay in the caches
// while a row is being processed.
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
  // In each row `columns` numbers can be read and written, and some more to complete the last vector.
  KeptRows(int rows, int64_t columns) : stride_((columns + kLine + kPage - 1) / kPage * kPage + kApart) {
    const int64_t bytes = rows == 0 ? 0 : (rows * stride_ + kApart) * static_cast<int64_t>(sizeof(R));
    // Page faults would cost as much as several rows, hence huge pages for large buffers.
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
  // Rows of logits are often a power of two apart. If these rows began at the same place in a page as the
  // logits, both would share the caches' sets, and the processor would mistake stores to these rows for
  // stores to the logits that it reads next.
  static constexpr int64_t kApart = 21 * kLine;
  static constexpr int64_t kHuge = int64_t(2) << 20;
  int64_t stride_;
  std::align_val_t align_{64};
  R* data_ = nullptr;
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
