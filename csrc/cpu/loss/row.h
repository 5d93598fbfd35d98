// A row on its way through the sweeps: RowContext is what every sweep works on.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "call.h"
#include "scratch.h"
#include "shifts.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// The results of sweep 1.
template <class R>
struct Statistics {
  R label_s = kLowest<R>, label_t = kLowest<R>;  // the label's logits
  R max_s = kLowest<R>, max_t = kLowest<R>;
  int64_t arg_s = 0, arg_t = 0;
  double columns = 0;
  double logit_sum = 0;
  // All sums below are relative to the shifts.
  Shifts<R> shift;
  double z_s = 0, z_t = 0, z_ce = 0;
  double moment_s = 0, moment_t = 0;  // sums of exponentials times their exponents of 2
  double stream[kMaxStreams] = {0, 0, 0}, cross_shift = 0;
};

// One per thread, reused for all of its rows.
template <class V, class Div>
struct RowContext {
  using R = typename V::Real;
  static constexpr bool kTeacher = Div::kReadsTeacher, kSplits = Div::kSplitsLabel;

  const Call<V, Div> call;
  RowPointer s{}, t{};        // the row's logits
  int64_t label_column = -1;  // -1: there is none, or it belongs to another shard
  Statistics<R> statistics;
  Row<double> normalised{};  // the sums as the functor sees them
  Scratch<V, Div> scratch;

  RowContext(const DenseParams& params, Div div, bool streamed)
      : call(params, div, streamed), scratch(params) {}

  // Whether the block's logits are whole vectors in memory, with the same dtype on both sides.
  bool is_plain(const Block<R>& b) const {
    if (!V::kSimd || b.n % V::kWidth != 0 || (kSplits && b.holds(label_column))) return false;
    if (!s.dense() || s.dtype == Dtype::kFloat64) return false;
    return !kTeacher || (t.dense() && t.dtype == s.dtype);
  }

  // Returns the start of the last block. An empty shard of the vocabulary has no blocks; the result is then
  // negative.
  int64_t last_block() const { return (call.params.vocab + kBlock - 1) / kBlock * kBlock - kBlock; }

  // Returns the block with its logits as numbers, and with -inf for a label that the divergence treats apart.
  Block<R> load(int64_t start) {
    Block<R> b = scratch.at(start);
    b.s = load_block<V>(s, start, b.n, scratch.logits_s);
    if constexpr (kTeacher) b.t = load_block<V>(t, start, b.n, scratch.logits_t);
    if constexpr (kSplits) {
      if (b.holds(label_column)) {
        b.s = without(b.s, scratch.logits_s, b.n, label_column - start);
        b.t = without(b.t, scratch.logits_t, b.n, label_column - start);
      }
    }
    return b;
  }

 private:
  // Copies the block to `buffer`, with -inf at `place`.
  static const R* without(const R* x, R* buffer, int64_t n, int64_t place) {
    if (x != buffer) std::memcpy(buffer, x, (n + V::kWidth - 1) / V::kWidth * V::kWidth * sizeof(R));
    buffer[place] = kLowest<R>;
    return buffer;
  }
};

// Returns the shifts for the largest logits so far.
template <class V, class Div>
inline Shifts<typename V::Real> shifts_for(const RowContext<V, Div>& row) {
  using R = typename V::Real;
  const Call<V, Div>& call = row.call;
  const R max_s = row.statistics.max_s, max_t = row.statistics.max_t;
  Shifts<R> to;
  to.s = exponent_of(max_s, call.log2_scale_s);
  to.t = exponent_of(max_t, call.log2_scale_t);
  if (call.same_temperature && row.kTeacher && std::fabs(to.s - to.t) < 4) to.s = to.t = std::max(to.s, to.t);
  to.ce = call.ce_power == 0 ? exponent_of(max_s, call.log2_scale_ce) : exponent_of(to.s, R(call.ce_power));
  if constexpr (Div::kReadsTeacher) {
    const double s = finite(max_s), t = finite(max_t);
    // ratio_of() subtracts the distance after it has scaled the difference, or before.
    const double scaled = V::kFused ? call.less_to_nats : 1, scale_after = V::kFused ? 1 : call.less_to_nats;
    const double distance = (s + t * call.less_temperatures) * scaled;
    to.distance = static_cast<R>(distance);
    to.base = kLn2 * (t * call.log2_scale_t - s * call.log2_scale_s) + (to.distance - distance) * scale_after;
  }
  return to;
}

inline void rescale(double& sum, double by) {
  if (sum != 0) sum *= std::exp2(by);
}

// `z`: the sum of the exponentials before they are rescaled.
inline void rescale_moment(double& moment, double z, double by) {
  const double factor = std::exp2(by);
  moment = z == 0 || factor == 0 ? 0 : factor * (moment + by * z);
}

// Converts all sums to shifts, and to a base, that are smaller by these amounts.
template <class V, class Div>
inline void move_sums(RowContext<V, Div>& row, double by_s, double by_t, double by_ce, double by_base) {
  auto& statistics = row.statistics;
  rescale_moment(statistics.moment_s, statistics.z_s, by_s);
  rescale_moment(statistics.moment_t, statistics.z_t, by_t);
  rescale(statistics.z_s, by_s);
  rescale(statistics.z_t, by_t);
  rescale(statistics.z_ce, by_ce);
  for (int k = 0; k < Div::kStreams; ++k) {
    double& stream = statistics.stream[k];
    const double a = row.call.div.teacher_power(k), b = row.call.div.student_power(k);
    if (Div::kCross && k == 0) {
      rescale(stream, (a + b) * by_s + kLog2e * a * by_base);
    } else {
      rescale(stream, a * by_t + b * by_s);
    }
    if (!Div::kCross && by_base != 0) stream += times(a == 1 ? statistics.z_t : statistics.z_s, by_base);
  }
}

template <class V, class Div>
inline void move_to(RowContext<V, Div>& row, const Shifts<typename V::Real>& to) {
  Shifts<typename V::Real>& shift = row.statistics.shift;
  move_sums(row, double(shift.s) - to.s, double(shift.t) - to.t, double(shift.ce) - to.ce,
            shift.base - to.base);
  shift = to;
}

// Returns 1 / z. Where the label is the only entry that exists, the sum over the others is 0; they then have
// probability 0.
template <class Div>
inline double reciprocal(double z) {
  return Div::kSplitsLabel && z == 0 ? 0 : 1 / z;
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
