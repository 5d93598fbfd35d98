// The middle sweep, for divergences whose sums need both log-sum-exps first.
#pragma once

#include "plain_block.h"
#include "row_logarithms.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// Sets found.sum. `student_alone`: whether the teacher's gradient is not wanted; b.left may then hold
// student_log().
template <class V, class Div, class R>
inline void find_sums(const RowSetup<V, Div>& setup, const RowState<R>& row, RowBlocks<V, Div>& blocks,
                      bool student_alone, Row<double>& found) {
  EntryScales<V> c = scales_of(setup, row, found.log_ratio_offset);
  for (int k = 0; k < kMaxSums; ++k) found.sum[k] = 0;
  for (int64_t start = 0; start < setup.params.vocab; start += kBlock) {
    const Block<R> b = with_exponentials(setup, row, blocks, start, Div::kSumsRead == Fields::kAll, kBlock);
    if (blocks.keeps) adapt(setup.div, c, row, blocks.shift(b));
    if constexpr (Div::kLog) logarithms(setup.div, c, b, blocks.e1);
    V sum[kMaxSums] = {V(0), V(0)};
    with_logits<Div::kSumsRead>(blocks, b, [&](auto s, auto t) {
      for (int64_t i = 0; i < b.n; i += V::kWidth) {
        const Entry<V> e = entry_as<Div::kSumsRead, Div>(c, b, i, s, t);
        setup.div.sums(e, sum);
        if constexpr (Div::kStudentReads == Fields::kStudentLog) {
          if (student_alone) setup.div.student_log(e).store(b.left + i);
        }
      }
    });
    for (int k = 0; k < Div::kSums; ++k) found.sum[k] += horizontal_sum(sum[k]);
  }
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
