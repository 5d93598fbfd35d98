// A thread's buffers: the blocks of a pair of rows, as numbers and as exponentials, and the rows that one
// sweep keeps for the next.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "../dispatch.h"
#include "../simd/block_io.h"
#include "call.h"
#include "shifts.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// Scratch buffers of one row's length, which one sweep writes and the next reads. They stay in the caches
// while a row is being processed.
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

// Whether sweep 1 keeps the terms of the cross stream, because the student's gradient needs the logits for
// nothing else.
template <class Div>
constexpr bool kKeepsTerms = Div::kStudentReads == Fields::kTerms;

// Whether sweep 2 keeps stored() for sweep 3.
template <class Div>
constexpr bool kKeepsStored = Div::kStudentReads == Fields::kStored;

template <class R>
struct Block {
  int64_t start, n;
  const R* s = nullptr;  // the student's logits, or null where the sweep does not need logits
  const R* t = nullptr;
  R* es;    // exponentials of the student
  R* et;    // of the teacher
  R* logs;  // the logarithms of a divergence with kLog
  // Numbers that one sweep keeps for the student's gradient, or null.
  R* kept;  // stored() or Terms::cross
  R* own;   // Terms::own, if it is not `es`

  bool holds(int64_t column) const { return column >= start && column < start + n; }
};

// One per thread, reused for all of its rows.
template <class V, class Div>
class Scratch {
 public:
  using R = typename V::Real;
  static constexpr int kW = V::kWidth;

  const bool keeps;                  // whether the later sweeps reuse the exponentials of the first
  alignas(64) R out_s[kBlock + kW];  // exponentials that are not kept; gradients
  alignas(64) R out_t[kBlock + kW];
  alignas(64) R e1[kBlock + kW];  // what one loop over a block leaves for the next
  alignas(64) R logs[Div::kLog ? kBlock + kW : 1];
  alignas(64) R logits_s[kBlock + kW];
  alignas(64) R logits_t[kBlock + kW];

  explicit Scratch(const DenseParams& params)
      : keeps(params.phase == Phase::kAll && params.vocab <= kMostKept),
        student_alone_(params.grad_teacher.data == nullptr),
        vocab_(params.vocab),
        kept_(keeps               ? kRows
              : kKeepsStored<Div> ? 1
                                  : 0,
              params.vocab),
        shifts_(keeps ? params.vocab / kBlock + 1 : 0) {}

  // Returns the block without its logits.
  Block<R> at(int64_t start) {
    Block<R> b;
    b.start = start;
    b.n = vocab_ - start < kBlock ? vocab_ - start : kBlock;
    b.es = keeps ? kept_.row(0) + start : out_s;
    b.et = keeps ? kept_.row(kTeacherRow) + start : out_t;
    b.logs = logs;
    b.kept = b.own = nullptr;
    if (student_alone_ && (kKeepsStored<Div> || (kKeepsTerms<Div> && keeps))) {
      // In the place of the teacher's exponentials, if these are kept: nothing reads them afterwards.
      b.kept = kept_.row(keeps ? kTeacherRow : 0) + start;
      if (Div::kOwnPower) b.own = kept_.row(kTeacherRow + 1) + start;
    }
    return b;
  }

  // The shifts that the kept exponentials of a block are relative to.
  Shifts<R>& shift(const Block<R>& b) { return shifts_[b.start / kBlock]; }

 private:
  // Kept rows larger than this would not stay in the caches.
  static constexpr int64_t kMostKept = (int64_t(2) << 20) / sizeof(R);
  static constexpr int kTeacherRow = Div::kReadsTeacher ? 1 : 0;
  static constexpr int kRows = kTeacherRow + 1 + (Div::kOwnPower ? 1 : 0);

  const bool student_alone_;  // whether the teacher's gradient is not wanted
  const int64_t vocab_;
  KeptRows<R> kept_;
  std::vector<Shifts<R>> shifts_;
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
