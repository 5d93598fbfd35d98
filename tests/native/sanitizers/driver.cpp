// Runs the CPU kernels over many shapes while a sanitizer watches, and checks what needs no second
// implementation: zeros where the result must be zero, and the same bits for any number of threads and any
// layout. See run.py.
#include <cstdio>
#include <string>

#include "calls.h"

namespace {

constexpr Dtype F32 = Dtype::kFloat32, BF16 = Dtype::kBFloat16, F16 = Dtype::kFloat16, F64 = Dtype::kFloat64;
constexpr Dtype kPairs[][2] = {{F32, F32},  {BF16, BF16}, {F16, F16},  {F32, BF16}, {F16, F32},
                               {BF16, F16}, {F64, F64},   {F64, BF16}, {F32, F64}};
constexpr double kTemperatures[][2] = {{1, 1}, {2, 2}, {1.5, 0.7}};
constexpr int64_t kColumns[] = {1, 2, 7, 1023, 1024, 1025, 5000};
#define FASTKD_ONE(...) +1
constexpr int kDivergences = FASTKD_DIVERGENCES(FASTKD_ONE);
#undef FASTKD_ONE

// Runs every divergence, pair of dtypes, width and layout, with one thread.
void sweep(const std::string& isa) {
  int turn = 0;
  for (int d = 0; d < kDivergences; ++d) {
    for (const auto& pair : kPairs) {
      const bool wide = pair[0] == F64 || pair[1] == F64;
      if (wide && isa != "baseline") continue;  // float64 has one implementation
      for (const int64_t vocab : kColumns) {
        for (const Layout layout : kLayouts) {
          // Long rows are run with one layout each, in turn; short rows with all of them.
          if (vocab > 1000 && int(layout) != turn % 5) continue;
          const auto& t = kTemperatures[turn % 3];
          Case c{Divergence(d), pair[0], pair[1], vocab > 1000 ? 7 : 10, vocab, layout, t[0], t[1], false,
                 false,         false,   false};
          Results out(c, wide);
          run(c, isa, 1, out);
          c.bare = Divergence(d) != Divergence::kDecoupled && turn % 2 == 0;
          c.in_place = true;
          run(c, isa, 1, out);
          c.in_place = c.bare = false;
          c.phases = c.sharded = true;
          run(c, isa, 1, out);
          ++turn;
        }
        ++turn;
      }
      // A shard without columns.
      const Case c{Divergence(d), pair[0], pair[1], 3, 0, Layout::kDense, 1, 1, false, true, true, false};
      Results out(c, wide);
      run(c, isa, 1, out);
    }
  }
  for (const Dtype dtype : {F32, BF16, F16, F64}) {
    for (const int64_t columns : kColumns) {
      for (const bool in_place : {false, true}) {
        run_scale(isa, dtype, 4, columns, in_place, 1);
        run_scale(isa, dtype, 3, columns, in_place, 1);
      }
    }
  }
}

// Enough rows for two threads.
void share(const std::string& isa) {
  for (int d = 0; d < kDivergences; ++d) {
    for (const bool wide : {false, true}) {
      if (wide && isa != "baseline") continue;
      const Dtype dtype = wide ? F64 : d % 2 ? F32 : BF16;
      const bool phases = d % 3 == 0;
      const Case c{Divergence(d), dtype, dtype, 67, 2001, Layout::kGaps, 2, 2, false, phases, phases, false};
      Results one(c, wide), several(c, wide);
      run(c, isa, 1, one);
      run(c, isa, 2, several);
      compare(c, one, several);
    }
  }
  for (const Dtype dtype : {F32, BF16, F64}) run_scale(isa, dtype, 67, 2001, true, 2);
}

// A gradient so large that it is written past the caches, and more threads.
void stream_out(const std::string& isa) {
  for (const Dtype dtype : {F32, BF16, F16}) {
    const int64_t rows = dtype == F32 ? 61 : 121;
    const Case c{
        Divergence::kForwardKL, dtype, dtype, rows, 70'001, Layout::kGaps, 1, 1, false, false, false, true};
    Results out(c, false);
    run(c, isa, 4, out);
  }
}

}  // namespace

int main() {
  for (const std::string& isa : cpu::isas()) {
    const long before = calls;
#if !defined(__SANITIZE_THREAD__)
    sweep(isa);
#endif
    share(isa);
    stream_out(isa);
    std::printf("%s: %ld calls\n", isa.c_str(), calls - before);
    std::fflush(stdout);
  }
}
