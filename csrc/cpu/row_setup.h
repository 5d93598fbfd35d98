// What is the same for all rows of a call.
#pragma once

#include <limits>
#include <type_traits>

#include "../math/visit.h"
#include "../params.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// Whence the exponentials at temperature 1 come.
enum class Soft { kSame, kSquare, kSeparate };

template <class V, class Div>
struct RowSetup {
  using R = typename V::Real;
  static constexpr bool kSparse = std::is_same<Div, OffSupport>::value;
  static constexpr bool kTeacher = !kSparse && !std::is_same<Div, NoDivergence>::value;
  static constexpr bool kSplits = Div::kSplitsLabel;

  const DenseParams& params;
  const Div div;
  const bool streamed;  // gradients go past the caches
  const bool same_temperature, cross_entropy, needs_label, softmax, smoothed;
  const Soft soft;
  // from logits to exponents of 2: the student's, the teacher's, the student's at temperature 1
  const R to_exponent_s, to_exponent_t, to_exponent_1;
  const R to_nats, temperatures;  // 1 / T; T / T_t

  RowSetup(const DenseParams& p, Div divergence, bool past_caches)
      : params(p),
        div(divergence),
        streamed(past_caches),
        same_temperature(p.temperature == p.teacher_temperature),
        cross_entropy(p.ce_weight != 0 && p.labels != nullptr),
        needs_label(p.labels != nullptr && (cross_entropy || kSplits || p.metrics != nullptr)),
        softmax(cross_entropy || p.z_loss != 0 || (p.metrics != nullptr && p.labels != nullptr)),
        smoothed(p.label_smoothing != 0 && p.labels != nullptr),
        soft(p.temperature == 1   ? Soft::kSame
             : p.temperature == 2 ? Soft::kSquare
                                  : Soft::kSeparate),
        to_exponent_s(static_cast<R>(kLog2e / p.temperature)),
        to_exponent_t(static_cast<R>(kLog2e / p.teacher_temperature)),
        to_exponent_1(static_cast<R>(kLog2e)),
        to_nats(static_cast<R>(1 / p.temperature)),
        temperatures(static_cast<R>(p.temperature / p.teacher_temperature)) {}
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
