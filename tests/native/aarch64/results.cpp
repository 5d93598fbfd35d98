// Prints the losses and gradients of the baseline kernels over many calls, so that two builds can be
// compared; see run.py. Every line is a call: the largest size of its numbers, and then the numbers.
#include <cmath>
#include <cstdio>
#include <string>

#include "../sanitizers/calls.h"
#include "cpu/simd/half.h"

namespace {

double number(const Matrix& x, Dtype dtype, int64_t r, int64_t v) {
  if (dtype == Dtype::kFloat32) {
    float f;
    std::memcpy(&f, x.at(r, v), sizeof f);
    return f;
  }
  uint16_t h;
  std::memcpy(&h, x.at(r, v), sizeof h);
  return dtype == Dtype::kBFloat16 ? from_bf16(h) : from_f16(h);
}

void print_call(const Case& c) {
  Results out(c, false);
  run(c, "baseline", 1, out);
  const auto print_name = [&](const char* what) {
    std::printf("%d/%d/%ld/%g/%s", int(c.divergence), int(c.student), long(c.vocab), c.temperature, what);
  };
  print_name("losses");
  for (int64_t r = 0; r < c.rows; ++r) std::printf(" %.9g", out.row_loss.at(r));
  std::printf("\n");
  print_name("gradients");
  const bool alone = c.divergence == Divergence::kNoDivergence || c.divergence == Divergence::kOffSupport;
  for (int64_t r = 0; r < c.rows; ++r) {
    for (int64_t v = 0; v < c.vocab; ++v) {
      std::printf(" %.9g", number(out.grad_student, c.student, r, v));
      if (!alone) std::printf(" %.9g", number(out.grad_teacher, c.teacher, r, v));
    }
  }
  std::printf("\n");
}

#define FASTKD_ONE(...) +1
constexpr int kDivergences = FASTKD_DIVERGENCES(FASTKD_ONE);
#undef FASTKD_ONE

}  // namespace

int main() {
  for (int d = 0; d < kDivergences; ++d) {
    for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16}) {
      for (const int64_t vocab : {1, 7, 1024, 1501}) {
        for (const double temperature : {1.0, 2.5}) {
          for (const bool phases : {false, true}) {
            print_call({Divergence(d), dtype, dtype, 7, vocab, Layout::kDense, temperature, temperature,
                        false, phases, phases, false});
          }
        }
      }
    }
  }
}
