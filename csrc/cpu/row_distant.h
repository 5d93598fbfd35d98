// The additional sweep for rows that share little probability, see Functor::kDistant.
#pragma once

#include "row_sums.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// Replaces found.sum. Few rows come here, so every block is loaded as numbers and takes no fast path.
template <class V, class Div, class R>
inline void find_distant_sums(const RowSetup<V, Div>& setup, const RowState<R>& row,
                              RowBlocks<V, Div>& blocks, Row<double>& found) {
  const EntryScales<V> c = scales_of(setup, row, found.log_ratio_offset);
  const Row<V> constants = widened<V>(found);
  const auto each = [&](const auto& body) {
    for (int64_t start = 0; start < setup.params.vocab; start += kBlock) {
      const Block<R> b = blocks.load(start, row.label);
      for (int64_t i = 0; i < b.n; i += V::kWidth) {
        Entry<V> e;
        add_logits(c, b, i, e);
        e.log_ratio = e.log_ratio_raw + c.log_ratio_offset;
        body(e);
      }
    }
  };
  V tops(kLowest<R>);
  each([&](const Entry<V>& e) { tops = max(setup.div.distant_exponent(e, constants), tops); });
  const R top = horizontal_max(tops);
  found.distant = true;
  found.sum[0] = found.sum[1] = top;
  if (top == kLowest<R>) return;
  V sum[kMaxSums] = {V(0), V(0)};
  each([&](const Entry<V>& e) { setup.div.distant_sums(e, constants, V(top), sum); });
  for (int k = 0; k < kMaxSums; ++k) found.sum[k] += std::log2(double(horizontal_sum(sum[k])));
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
