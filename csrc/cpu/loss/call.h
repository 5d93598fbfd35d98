// Constants of a call, the same for all of its rows.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "../../divergences/visit.h"
#include "../../params.h"

namespace fastkd {
inline namespace FASTKD_ISA {

template <class V, class Div>
struct Call {
  using R = typename V::Real;
  static constexpr bool kTeacher = Div::kReadsTeacher;
  static constexpr bool kSparse = Div::kSparseTeacher;
  static constexpr bool kSplits = Div::kSplitsLabel;

  const DenseParams& params;
  const Div div;
  const bool streamed;  // gradients bypass the caches
  const bool same_temperature, cross_entropy, needs_label;
  const bool ce_softmax;  // whether the call needs the student's softmax at temperature 1
  const bool smoothed;
  // T if it is 1, 2, 3 or 4, else 0. In the former case exp(s) = exp(s / T)^T, so the exponentials at
  // temperature 1 are powers of the divergence's.
  const int ce_power;
  // Factors from logits to exponents of 2, log2(e) / T: for the student, the teacher, the student at
  // temperature 1.
  const R log2_scale_s, log2_scale_t, log2_scale_ce;
  const R less_to_nats, less_temperatures;  // -1 / T; -T / T_t
  // The sum that a block's exponentials may reach before the shift has to follow. The bound keeps
  // exponentials at temperature 1 finite where they are computed separately.
  const double most;

  Call(const DenseParams& p, Div divergence, bool past_caches)
      : params(p),
        div(divergence),
        streamed(past_caches),
        same_temperature(p.temperature == p.teacher_temperature),
        cross_entropy(p.ce_weight != 0 && p.labels != nullptr),
        needs_label(p.labels != nullptr && (cross_entropy || kSplits || p.metrics != nullptr)),
        ce_softmax(cross_entropy || p.z_loss != 0 || (p.metrics != nullptr && p.labels != nullptr)),
        smoothed(p.label_smoothing != 0 && p.labels != nullptr),
        ce_power(p.temperature == 1 || p.temperature == 2 || p.temperature == 3 || p.temperature == 4
                     ? static_cast<int>(p.temperature)
                     : 0),
        log2_scale_s(static_cast<R>(kLog2e / p.temperature)),
        log2_scale_t(static_cast<R>(kLog2e / p.teacher_temperature)),
        log2_scale_ce(static_cast<R>(kLog2e)),
        less_to_nats(static_cast<R>(-1 / p.temperature)),
        less_temperatures(static_cast<R>(-p.temperature / p.teacher_temperature)),
        most(std::exp2(ce_softmax && ce_power == 0 ? std::min(17.0, 118 / p.temperature - 1) : 17.0)) {}
};

}  // namespace FASTKD_ISA
}  // namespace fastkd
