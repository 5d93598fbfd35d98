// One token's loss and gradients, in two sweeps over its two rows (three where a divergence's sums need both
// log-sum-exps first). The first sweep reads the rows from memory, keeping a running maximum from block to
// block; the last goes back to front, so that it finds in the caches what was read most recently.
//
// Exponentials are powers of two: x = logit * log2(e) / T - shift. The shift is the row's maximum. With equal
// temperatures and maxima near each other both rows take the same one: equal logits then give equal
// exponentials, and q - p is right to the last digits however alike the models are.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "../math/visit.h"
#include "../params.h"
#include "blocks.h"
#include "split.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// A block goes through short loops over buffers that stay in L1, exponentials first: a loop that did all at
// once would hold too few of its long chains of dependent instructions in flight.
template <class V, class Div>
class RowKernel {
  using R = typename V::Real;
  static constexpr bool kSparse = std::is_same<Div, OffSupport>::value;
  static constexpr bool kTeacher = !kSparse && !std::is_same<Div, NoDivergence>::value;
  static constexpr bool kSplits = Div::kSplitsLabel;
  static constexpr int kW = V::kWidth;
  static constexpr R kLowest = -std::numeric_limits<R>::infinity();

 public:
  RowKernel(const DenseParams& params, Div div, bool streamed)
      : params_(params),
        div_(div),
        streamed_(streamed),
        same_temperature_(params.temperature == params.teacher_temperature),
        cross_entropy_(params.ce_weight != 0 && params.labels != nullptr),
        needs_label_(params.labels != nullptr && (cross_entropy_ || kSplits || params.metrics != nullptr)),
        softmax_(cross_entropy_ || params.z_loss != 0 ||
                 (params.metrics != nullptr && params.labels != nullptr)),
        soft_(params.temperature == 1   ? Soft::kSame
              : params.temperature == 2 ? Soft::kSquare
                                        : Soft::kSeparate),
        cs_(static_cast<R>(kLog2e / params.temperature)),
        ct_(static_cast<R>(kLog2e / params.teacher_temperature)),
        c1_(static_cast<R>(kLog2e)),
        to_nats_(static_cast<R>(1 / params.temperature)),
        temperatures_(static_cast<R>(params.temperature / params.teacher_temperature)),
        logs_(Div::kLog ? params.vocab + kW : 0) {}

  template <class NextRow>
  void run_all(const NextRow& next) {
    for (int64_t begin, end; next(&begin, &end);) {
      for (int64_t r = begin; r < end; ++r) run(r);
    }
    if (streamed_) stream_fence();
  }

 private:
  // Whence the exponentials at temperature 1 come.
  enum class Soft { kSame, kSquare, kSeparate };

  void run(int64_t r) {
    const R loss_scale = static_cast<const R*>(params_.loss_scale)[r];
    const R grad_scale = static_cast<const R*>(params_.grad_scale)[r];
    label_ = params_.labels == nullptr ? -1 : params_.labels[r];
    const bool ignored = params_.labels != nullptr && label_ == params_.ignore_index;
    if (ignored || (loss_scale == 0 && grad_scale == 0)) return skip(r);
    if (label_ >= params_.vocab) label_ = -1;
    s_ = row_of(params_.student, params_.inner, r);
    t_ = row_of(params_.teacher, params_.inner, r);
    double* const found = params_.record == nullptr ? nullptr : params_.record + r * record::kCount;

    if (params_.phase == Phase::kAll || params_.phase == Phase::kStatistics) {
      label_s_ = needs_label_ && label_ >= 0 ? load_one<R>(s_.at(label_), s_.dtype) : kLowest;
      label_t_ = kSplits && label_ >= 0 ? load_one<R>(t_.at(label_), t_.dtype) : kLowest;
      find_partition();
      if (params_.phase == Phase::kStatistics) return write_record(found);
    } else {
      read_record(found);
    }
    Row<double> row = normalised();
    if (params_.phase == Phase::kFinish) {
      row.sum[0] = found[record::kSum0];
      row.sum[1] = found[record::kSum1];
    } else if (Div::kSums > 0) {
      find_sums(row);
      if (params_.phase == Phase::kSums) {
        found[record::kSum0] = row.sum[0];
        found[record::kSum1] = row.sum[1];
        return;
      }
    }
    finish(r, row, loss_scale, grad_scale);
  }

  // A row that is not read.
  void skip(int64_t r) {
    if (params_.phase == Phase::kStatistics || params_.phase == Phase::kSums) return;
    const RowPointer grad_s = row_of(params_.grad_student, params_.inner, r);
    const RowPointer grad_t = row_of(params_.grad_teacher, params_.inner, r);
    static_cast<R*>(params_.row_loss)[r] = 0;
    if (params_.metrics != nullptr) {
      for (int k = 0; k < metric::kCount; ++k) static_cast<R*>(params_.metrics)[r * metric::kCount + k] = 0;
    }
    if (grad_s.data != nullptr) zero_columns(grad_s, 0, params_.grad_student.columns);
    if (grad_t.data != nullptr) zero_columns(grad_t, 0, params_.grad_teacher.columns);
  }

  void finish(int64_t r, Row<double>& row, R loss_scale, R grad_scale) {
    double divergence = std::numeric_limits<double>::quiet_NaN(), loss = 0;
    if constexpr (kTeacher) {
      divergence = div_.value(row);
      loss += params_.kd_weight * divergence;
    }
    const double lse = softmax_ ? lse_at_one() : 0;
    const double nll = needs_label_ && softmax_ ? cross_entropy(lse) : 0;
    if (cross_entropy_) loss += params_.ce_weight * nll;
    if (params_.z_loss != 0) loss += params_.z_loss * lse * lse;
    static_cast<R*>(params_.row_loss)[r] = loss_scale == 0 ? R(0) : static_cast<R>(loss_scale * loss);
    if (params_.metrics != nullptr) {
      write_metrics(static_cast<R*>(params_.metrics) + r * metric::kCount, divergence, nll);
    }

    const RowPointer grad_s = row_of(params_.grad_student, params_.inner, r);
    const RowPointer grad_t = row_of(params_.grad_teacher, params_.inner, r);
    if (grad_s.data != nullptr || (kTeacher && grad_t.data != nullptr)) {
      const double coefficient = kSparse ? static_cast<const R*>(params_.coefficient)[r] : 0;
      write_gradients(row, grad_scale, lse, coefficient, grad_s, grad_t);
    }
    if (grad_s.data != nullptr) zero_columns(grad_s, params_.vocab, params_.grad_student.columns);
    if (grad_t.data != nullptr)
      zero_columns(grad_t, kTeacher ? params_.vocab : 0, params_.grad_teacher.columns);
  }

  struct Block {
    const R* s;
    const R* t;
    int64_t start, n;
  };

  Block load(int64_t start) {
    Block b{nullptr, nullptr, start, params_.vocab - start < kBlock ? params_.vocab - start : kBlock};
    b.s = load_block<V>(s_, start, b.n, buffer_s_);
    if constexpr (kTeacher) b.t = load_block<V>(t_, start, b.n, buffer_t_);
    if constexpr (kSplits) {
      if (label_ >= start && label_ < start + b.n) {
        b.s = without(b.s, buffer_s_, b.n, label_ - start);
        b.t = without(b.t, buffer_t_, b.n, label_ - start);
      }
    }
    return b;
  }

  // The block in `buffer`, with -inf at `place`.
  static const R* without(const R* x, R* buffer, int64_t n, int64_t place) {
    if (x != buffer) std::memcpy(buffer, x, (n + kW - 1) / kW * kW * sizeof(R));
    buffer[place] = kLowest;
    return buffer;
  }

  // Four running maxima, since each waits for its last comparison.
  static R block_max(const R* x, int64_t n) {
    V top[4] = {V::load(x), V::load(x), V::load(x), V::load(x)};
    int64_t i = 0;
    for (; i + 4 * kW <= n; i += 4 * kW) {
      for (int k = 0; k < 4; ++k) top[k] = max(top[k], V::load(x + i + k * kW));
    }
    for (; i < n; i += kW) top[0] = max(top[0], V::load(x + i));
    return horizontal_max(max(max(top[0], top[1]), max(top[2], top[3])));
  }

  // Without the padding of the last vector, and without a label that is split off, which are -inf.
  double block_sum(const Block& b) {
    const bool split = kSplits && label_ >= b.start && label_ < b.start + b.n;
    if (split) buffer_s_[label_ - b.start] = 0;
    V total(0);
    int64_t i = 0;
    for (; i + kW <= b.n; i += kW) total = total + V::load(b.s + i);
    double sum = horizontal_sum(total);
    for (; i < b.n; ++i) sum += b.s[i];
    if (split) buffer_s_[label_ - b.start] = kLowest;
    return sum;
  }

  static int64_t first_of(const R* x, int64_t n, R value) {
    int64_t i = 0;
    while (i + 1 < n && x[i] != value) ++i;
    return i;
  }

  static void exponentials(const R* x, int64_t n, R scale, R shift, R* out) {
    const V by(scale), less(-shift);
    for (int64_t i = 0; i < n; i += kW) exp2(fma(V::load(x + i), by, less)).store(out + i);
  }

  struct Sums {
    double first, squares;
  };

  // The same, with their sums, and the row asked for beforehand at `ahead`: the hardware's prefetcher stops
  // at the page's end, about where a block does. (A prefetch past the row is harmless.)
  static Sums exponentials(const R* x, int64_t n, R scale, R shift, R* out, const char* ahead, int64_t step) {
    const V by(scale), less(-shift);
    V first(0), squares(0);
    for (int64_t i = 0; i < n; i += kW) {
      const V e = exp2(fma(V::load(x + i), by, less));
      e.store(out + i);
      first = first + e;
      squares = fma(e, e, squares);
      prefetch(ahead + i * step);
    }
    return {horizontal_sum(first), horizontal_sum(squares)};
  }

  Sums student_exponentials(const Block& b, int64_t toward) {
    return exponentials(b.s, b.n, cs_, shift_s_, es_, s_.at(b.start + toward), s_.step);
  }

  Sums teacher_exponentials(const Block& b, int64_t toward) {
    if constexpr (!kTeacher) return {0, 0};
    return exponentials(b.t, b.n, ct_, shift_t_, et_, t_.at(b.start + toward), t_.step);
  }

  // Fills es_ and et_; `toward`: columns to the block that comes next.
  void exponentials(const Block& b, int64_t toward) {
    student_exponentials(b, toward);
    teacher_exponentials(b, toward);
  }

  // The student's exponentials at temperature 1, once es_ is filled.
  const R* exponentials_at_one(const Block& b) {
    if (soft_ == Soft::kSame) return es_;
    if (soft_ == Soft::kSeparate) {
      exponentials(b.s, b.n, c1_, shift_1_, e1_);
    } else {
      for (int64_t i = 0; i < b.n; i += kW) {
        const V e = V::load(es_ + i);
        (e * e).store(e1_ + i);
      }
    }
    return e1_;
  }

  // Sweep 1: sums of exponentials, and the divergence's streams, relative to the shifts.
  void find_partition() {
    max_s_ = max_t_ = kLowest;
    arg_s_ = arg_t_ = 0;
    shift_s_ = shift_t_ = shift_1_ = 0;
    z_s_ = z_t_ = z_1_ = logit_sum_ = moment_s_ = moment_t_ = cross_shift_ = 0;
    columns_ = params_.vocab;
    for (double& sum : stream_) sum = 0;
    const bool smoothed = params_.label_smoothing != 0 && params_.labels != nullptr;
    for (int64_t start = 0; start < params_.vocab; start += kBlock) {
      const Block b = load(start);
      raise_shifts(b, block_max(b.s, b.n), kTeacher ? block_max(b.t, b.n) : kLowest);
      add_block(b);
      if (params_.metrics != nullptr) add_moments(b);
      if (smoothed) logit_sum_ += block_sum(b);
    }
    if (Div::kCross && !(stream_[0] > 1e-18 && stream_[0] < 1e30)) find_distant_cross();
  }

  // -inf everywhere so far: any finite shift will do, and keeps -inf - shift from being NaN.
  static R finite(R x) { return x == kLowest ? R(0) : x; }

  // The shifts that go with the largest logits.
  void choose_shifts(R* to_s, R* to_t, R* to_1) const {
    *to_s = finite(max_s_) * cs_, *to_t = finite(max_t_) * ct_;
    if (same_temperature_ && kTeacher && std::fabs(*to_s - *to_t) < 16)
      *to_s = *to_t = std::max(*to_s, *to_t);
    *to_1 = soft_ == Soft::kSeparate ? finite(max_s_) * c1_ : soft_ == Soft::kSquare ? 2 * *to_s : *to_s;
  }

  static void rescale(double& sum, double by) {
    if (sum != 0) sum *= std::exp2(by);
  }

  // All sums to other shifts.
  void move(double by_s, double by_t, double by_1) {
    rescale(z_s_, by_s);
    rescale(z_t_, by_t);
    rescale(z_1_, by_1);
    rescale(moment_s_, by_s);
    rescale(moment_t_, by_t);
    for (int k = 0; k < Div::kStreams; ++k) {
      rescale(stream_[k], div_.teacher_power(k) * by_t + div_.student_power(k) * by_s);
    }
  }

  void raise_shifts(const Block& b, R top_s, R top_t) {
    if (!(top_s > max_s_) && !(top_t > max_t_) && b.start != 0) return;
    if (top_s > max_s_) {
      max_s_ = top_s;
      if (params_.metrics != nullptr) arg_s_ = b.start + first_of(b.s, b.n, top_s);
    }
    if (top_t > max_t_) {
      max_t_ = top_t;
      if (params_.metrics != nullptr) arg_t_ = b.start + first_of(b.t, b.n, top_t);
    }
    R to_s, to_t, to_1;
    choose_shifts(&to_s, &to_t, &to_1);
    move(double(shift_s_) - to_s, double(shift_t_) - to_t, double(shift_1_) - to_1);
    shift_s_ = to_s;
    shift_t_ = to_t;
    shift_1_ = to_1;
  }

  // Where the label is the only entry, the others are none and have no share.
  static double reciprocal(double z) { return kSplits && z == 0 ? 0 : 1 / z; }

  // The row's constants, as vectors. The lower ones are known after the first sweep.
  struct Unit {
    V cs, ct, shift_s, shift_t, to_nats, temperatures, between, cross_shift;
    V r_s, r_t, offset;
    explicit Unit(const RowKernel& k)
        : cs(k.cs_),
          ct(k.ct_),
          shift_s(-k.shift_s_),
          shift_t(-k.shift_t_),
          to_nats(k.to_nats_),
          temperatures(k.temperatures_),
          between(kLn2 * (double(k.shift_s_) - k.shift_t_)),
          cross_shift(k.cross_shift_),
          r_s(reciprocal(k.z_s_)),
          r_t(reciprocal(k.z_t_)),
          offset(k.ratio_offset()) {}
  };

  // From the logits' difference, not from the exponents, whose rounding would drown a small ratio.
  V log_ratio(const Unit& u, V s, V t) const {
    return (same_temperature_ ? t - s : fma(t, u.temperatures, V(0) - s)) * u.to_nats;
  }

  // What the first sweep knows of the entry in lane i of the block, its exponentials being in es_ and et_.
  Entry<V> raw_entry(const Unit& u, const Block& b, int64_t i) const {
    const V s = V::load(b.s + i), t = V::load(b.t + i);
    Entry<V> e;
    e.xs = fma(s, u.cs, u.shift_s);
    e.xt = fma(t, u.ct, u.shift_t);
    e.es = V::load(es_ + i);
    e.et = V::load(et_ + i);
    e.ratio = log_ratio(u, s, t);
    e.relative = e.ratio + u.between;
    return e;
  }

  Entry<V> entry(const Unit& u, const Block& b, int64_t i) const {
    Entry<V> e = raw_entry(u, b, i);
    e.q = e.es * u.r_s;
    e.p = e.et * u.r_t;
    e.q_minus_p = e.q - e.p;
    e.log_ratio = e.ratio + u.offset;
    return e;
  }

  // The logarithms that the divergence asks for, in loops of their own as the exponentials are. Fills log_,
  // by way of e1_; a row's are kept for the next sweep, to which they are `known`.
  void logarithms(const Unit& u, const Block& b, bool known) {
    if constexpr (Div::kLog) {
      log_ = logs_.data() + b.start;
      if (known) return;
      for (int64_t i = 0; i < b.n; i += kW) {
        V rest;
        div_.log_argument(entry(u, b, i), rest).store(log_ + i);
        rest.store(e1_ + i);
      }
      for (int64_t i = 0; i < b.n; i += kW) {
        (log_positive(V::load(log_ + i)) + V::load(e1_ + i)).store(log_ + i);
      }
    }
  }

  Entry<V> full_entry(const Unit& u, const Block& b, int64_t i) const {
    Entry<V> e = entry(u, b, i);
    if constexpr (Div::kLog) e.log = V::load(log_ + i);
    return e;
  }

  void add_block(const Block& b) {
    const Sums of_student = student_exponentials(b, kBlock);
    z_s_ += of_student.first;
    z_t_ += teacher_exponentials(b, kBlock).first;
    if (softmax_) z_1_ += sum_at_one(b, of_student);
    if constexpr (Div::kStreams > 0) add_streams(b);
  }

  double sum_at_one(const Block& b, const Sums& of_student) {
    if (soft_ == Soft::kSame) return of_student.first;
    if (soft_ == Soft::kSquare) return of_student.squares;
    const V by(c1_), less(-shift_1_);
    V sum(0);
    for (int64_t i = 0; i < b.n; i += kW) sum = sum + exp2(fma(V::load(b.s + i), by, less));
    return horizontal_sum(sum);
  }

  void add_streams(const Block& b) {
    const Unit u(*this);
    V stream[kMaxStreams] = {V(0), V(0), V(0)};
    for (int64_t i = 0; i < b.n; i += kW) div_.stream(raw_entry(u, b, i), u.cross_shift, stream);
    for (int k = 0; k < Div::kStreams; ++k) stream_[k] += horizontal_sum(stream[k]);
  }

  // Exponentials times logits, of which the entropies are made. Only metrics ask for them.
  void add_moments(const Block& b) {
    V moment_s(0), moment_t(0);
    for (int64_t i = 0; i < b.n; i += kW) {
      moment_s = times_add(V::load(es_ + i), V::load(b.s + i), moment_s);
      if constexpr (kTeacher) moment_t = times_add(V::load(et_ + i), V::load(b.t + i), moment_t);
    }
    moment_s_ += horizontal_sum(moment_s);
    moment_t_ += horizontal_sum(moment_t);
  }

  // The sum of p^a q^b between rows so far apart that its terms over- or underflow: once more, relative to
  // its largest term.
  void find_distant_cross() {
    cross_shift_ = 0;
    const double a = div_.teacher_power(0), b = div_.student_power(0);
    const Unit raw(*this);
    R top = kLowest;
    for (int64_t start = 0; start < params_.vocab; start += kBlock) {
      const Block block = load(start);
      for (int64_t i = 0; i < block.n; i += kW) {
        const Entry<V> e = raw_entry(raw, block, i);
        const V exponent = V(a) * e.xt + V(b) * e.xs;
        // Entries that are -inf on both sides do not exist.
        const V larger = where_le(e.xs, e.xt, e.xt, e.xs);
        top = std::max(top, horizontal_max(where_le(larger, V(kLowest), V(kLowest), exponent)));
      }
    }
    // Infinitely far, or no finite terms at all: the sum is what it is.
    if (std::isinf(top) || top == 0) return;
    cross_shift_ = top;
    stream_[0] = stream_[1] = stream_[2] = 0;
    for (int64_t start = 0; start < params_.vocab; start += kBlock) {
      const Block block = load(start);
      exponentials(block, kBlock);
      add_streams(block);
    }
  }

  // The record speaks of the largest logits where the kernel speaks of its shifts.
  void write_record(double* found) {
    const double to_s = double(finite(max_s_)) * cs_, to_t = double(finite(max_t_)) * ct_;
    move(shift_s_ - to_s, shift_t_ - to_t, shift_1_ - double(finite(max_s_)) * c1_);
    const double values[record::kCount] = {
        max_s_,         max_t_,         z_s_,       z_t_,     z_1_,     stream_[0], stream_[1],
        stream_[2],     cross_shift_,   logit_sum_, label_s_, label_t_, moment_s_,  moment_t_,
        double(arg_s_), double(arg_t_), columns_,   0,        0};
    static_assert(sizeof values == sizeof(double) * record::kCount, "a value for each column");
    for (int k = 0; k < record::kCount; ++k) found[k] = values[k];
  }

  void read_record(const double* found) {
    max_s_ = static_cast<R>(found[record::kMaxS]);
    max_t_ = static_cast<R>(found[record::kMaxT]);
    z_s_ = found[record::kZS];
    z_t_ = found[record::kZT];
    z_1_ = found[record::kZOne];
    for (int k = 0; k < kMaxStreams; ++k) stream_[k] = found[record::kStream0 + k];
    cross_shift_ = found[record::kCrossShift];
    logit_sum_ = found[record::kLogitSum];
    label_s_ = static_cast<R>(found[record::kLabelS]);
    label_t_ = static_cast<R>(found[record::kLabelT]);
    moment_s_ = found[record::kMomentS];
    moment_t_ = found[record::kMomentT];
    arg_s_ = static_cast<int64_t>(found[record::kArgS]);
    arg_t_ = static_cast<int64_t>(found[record::kArgT]);
    columns_ = found[record::kColumns];
    choose_shifts(&shift_s_, &shift_t_, &shift_1_);
    move(double(finite(max_s_)) * cs_ - shift_s_, double(finite(max_t_)) * ct_ - shift_t_,
         double(finite(max_s_)) * c1_ - shift_1_);
  }

  // log p - log q less the ratio of the logits, in nats
  double ratio_offset() const { return kLn2 * (std::log2(z_s_ / z_t_) + (double(shift_s_) - shift_t_)); }

  Row<double> normalised() const {
    Row<double> row{};
    if constexpr (kTeacher) {
      row.offset = ratio_offset();
      // By the quotient of the two sums, so that equal rows differ by exactly 0.
      const double bits_s = std::log2(z_s_), between = std::log2(z_t_ / z_s_), bits_t = bits_s + between;
      for (int k = 0; k < Div::kStreams; ++k) {
        const double a = div_.teacher_power(k), b = div_.student_power(k);
        row.scale[k] = std::exp2((k == 0 ? cross_shift_ : 0) - (a + b) * bits_s - a * between);
        row.stream[k] = stream_[k] * row.scale[k];
      }
      if constexpr (Div::kCross) {
        row.cross_shift = cross_shift_;
        row.cross_inverse = stream_[0] == 0 ? 0 : 1 / stream_[0];
        // Where the powers add up to 1, as those of the divergences that ask for it do.
        row.log_cross =
            kLn2 * (cross_shift_ + std::log2(stream_[0] / z_s_) - div_.teacher_power(0) * between);
      }
      if constexpr (kSplits) {
        const Split student = split(label_s_ * cs_ - double(shift_s_) - bits_s);
        const Split teacher = split(label_t_ * ct_ - double(shift_t_) - std::log2(z_t_));
        row.p_label = teacher.label, row.q_label = student.label;
        row.p_others = teacher.others, row.q_others = student.others;
        row.label_ratio = teacher.log_label - student.log_label;
        row.others_ratio = teacher.log_others - student.log_others;
      }
    }
    return row;
  }

  void find_sums(Row<double>& row) {
    const Unit u(*this);
    row.sum[0] = row.sum[1] = 0;
    for (int64_t start = 0; start < params_.vocab; start += kBlock) {
      const Block b = load(start);
      exponentials(b, kBlock);
      logarithms(u, b, false);
      V sum[kMaxSums] = {V(0), V(0)};
      for (int64_t i = 0; i < b.n; i += kW) div_.sums(full_entry(u, b, i), sum);
      for (int k = 0; k < Div::kSums; ++k) row.sum[k] += horizontal_sum(sum[k]);
    }
  }

  // log2 of the odds of the label at temperature 1, where the sums leave it out
  double label_odds() const { return label_s_ * kLog2e - shift_1_ - std::log2(z_1_); }

  double lse_at_one() const {
    const double others = kLn2 * (double(shift_1_) + std::log2(z_1_));
    if (!kSplits || !needs_label_) return others;
    // By the larger part, which is finite.
    const double odds = label_odds();
    return odds > 0 ? label_s_ - split(odds).log_label : others - split(odds).log_others;
  }

  double cross_entropy(double lse) const {
    double nll = kSplits ? -split(label_odds()).log_label : lse - label_s_;
    const double e = params_.label_smoothing;
    if (e != 0) {
      const double sum = kSplits ? logit_sum_ + label_s_ : logit_sum_;
      nll = (1 - e) * nll + e * (lse - sum / columns_);
    }
    return nll;
  }

  static double entropy(double z, double moment, double shift, double temperature) {
    return kLn2 * (shift + std::log2(z)) - moment / z / temperature;
  }

  void write_metrics(R* out, double divergence, double nll) const {
    constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
    double student = entropy(z_s_, moment_s_, shift_s_, params_.temperature);
    double teacher = kTeacher ? entropy(z_t_, moment_t_, shift_t_, params_.teacher_temperature) : kUnknown;
    double arg_s = arg_s_, arg_t = arg_t_;
    if constexpr (kSplits) {
      const Row<double> row = normalised();
      const auto with_label = [](double among_others, double others, double label) {
        // The entropy of the split and that among the others.
        return others * among_others - (label > 0 ? label * std::log(label) : 0) -
               (others > 0 ? others * std::log(others) : 0);
      };
      student = with_label(row.q_others > 0 ? student : 0, row.q_others, row.q_label);
      teacher = with_label(row.p_others > 0 ? teacher : 0, row.p_others, row.p_label);
      // -1: the label itself, first of equals by its column (which shards do not compare)
      const auto leads = [&](R label, R max, double arg) {
        return label > max || (label == max && !params_.sharded && label_ < arg);
      };
      if (leads(label_s_, max_s_, arg_s)) arg_s = -1;
      if (leads(label_t_, max_t_, arg_t)) arg_t = -1;
    }
    out[metric::kKd] = static_cast<R>(kTeacher ? params_.kd_metric * divergence : kUnknown);
    out[metric::kCe] = static_cast<R>(needs_label_ ? nll : kUnknown);
    out[metric::kStudentEntropy] = static_cast<R>(student);
    out[metric::kTeacherEntropy] = static_cast<R>(teacher);
    out[metric::kAgreement] = static_cast<R>(kTeacher ? arg_s == arg_t : kUnknown);
  }

  static Row<V> widened(const Row<double>& row) {
    Row<V> wide;
    wide.offset = V(row.offset);
    for (int k = 0; k < kMaxStreams; ++k) wide.stream[k] = V(row.stream[k]), wide.scale[k] = V(row.scale[k]);
    for (int k = 0; k < kMaxSums; ++k) wide.sum[k] = V(row.sum[k]);
    for (int k = 0; k < kMaxConstants; ++k) wide.constant[k] = V(row.constant[k]);
    wide.cross_shift = V(row.cross_shift);
    wide.cross_inverse = V(row.cross_inverse);
    return wide;
  }

  // The last sweep, back to front. `coefficient`: of q in a sparse teacher's gradient.
  void write_gradients(const Row<double>& found, R scale, double lse, double coefficient,
                       const RowPointer& grad_s, const RowPointer& grad_t) {
    const Unit u(*this);
    const Row<V> row = widened(found);
    const double by_student = params_.kd_weight / params_.temperature * scale;
    const double by_teacher = params_.kd_weight / params_.teacher_temperature * scale;
    const V to_s(by_student), to_t(by_teacher), to_q(kSparse ? by_student * coefficient / z_s_ : 0);
    const double ce = cross_entropy_ ? params_.ce_weight : 0;
    const double by_softmax = (ce + 2 * params_.z_loss * lse) * scale;
    const bool softmax = ce != 0 || params_.z_loss != 0;
    const V to_1(!softmax ? 0 : by_softmax * (kSplits ? std::exp2(shift_1_ - lse * kLog2e) : 1 / z_1_));
    const double e = params_.label_smoothing;
    const double spread = -ce * e / columns_ * scale, hot = ce * (1 - e) * scale;
    const int64_t last = (params_.vocab - 1) / kBlock * kBlock;
    for (int64_t start = last; start >= 0; start -= kBlock) {
      const Block b = load(start);
      exponentials(b, -kBlock);
      logarithms(u, b, params_.phase == Phase::kAll);
      const R* const e1 = softmax ? exponentials_at_one(b) : es_;
      // The gradients take the exponentials' place.
      for (int64_t i = 0; i < b.n; i += kW) {
        V grad = fma(to_1, V::load(e1 + i), V(spread));
        if constexpr (kTeacher) {
          const Entry<V> x = full_entry(u, b, i);
          grad = fma(to_s, div_.student(x, row), grad);
          if (grad_t.data != nullptr) (to_t * div_.teacher(x, row)).store(et_ + i);
        } else if constexpr (kSparse) {
          grad = fma(to_q, V::load(es_ + i), grad);
        }
        grad.store(es_ + i);
      }
      // In full precision, before the one rounding.
      if (label_ >= start && label_ < start + b.n) {
        const int64_t place = label_ - start;
        if constexpr (kSplits) {
          const double soft = softmax ? by_softmax * std::exp(label_s_ - lse) : 0;
          es_[place] = static_cast<R>(by_student * div_.label_student(found) + soft + spread);
          et_[place] = static_cast<R>(by_teacher * div_.label_teacher(found));
        }
        es_[place] -= static_cast<R>(hot);
      }
      if (grad_s.data != nullptr) store_block<V>(es_, b.n, grad_s, start, streamed_);
      if (kTeacher && grad_t.data != nullptr) store_block<V>(et_, b.n, grad_t, start, streamed_);
    }
  }

  const DenseParams& params_;
  const Div div_;
  const bool streamed_, same_temperature_, cross_entropy_, needs_label_, softmax_;
  const Soft soft_;
  const R cs_, ct_, c1_, to_nats_, temperatures_;

  RowPointer s_{}, t_{};
  int64_t label_ = -1;  // -1: none, or in another shard
  R label_s_ = 0, label_t_ = 0;
  R max_s_, max_t_, shift_s_, shift_t_, shift_1_;
  int64_t arg_s_, arg_t_;
  double z_s_, z_t_, z_1_, stream_[kMaxStreams], logit_sum_, moment_s_, moment_t_, cross_shift_, columns_;
  alignas(64) R buffer_s_[kBlock + kW];
  alignas(64) R buffer_t_[kBlock + kW];
  alignas(64) R es_[kBlock + kW];
  alignas(64) R et_[kBlock + kW];
  alignas(64) R e1_[kBlock + kW];
  std::vector<R> logs_;  // of a row
  R* log_ = nullptr;     // of a block
};

// Rows of a call, one after the other, until `next` gives no more.
template <class V, class NextRow>
inline void dense_rows_with(const DenseParams& params, bool streamed, const NextRow& next) {
  visit_divergence(params.divergence, params.alpha, params.beta,
                   [&](auto div) { RowKernel<V, decltype(div)>(params, div, streamed).run_all(next); });
}

// out = grad * factor for one row
template <class V>
inline void scale_row(const ScaleParams& params, int64_t r) {
  using R = typename V::Real;
  const R factor = static_cast<const R*>(params.factor)[r * params.factor_stride];
  const int64_t size = size_of(params.dtype);
  char* in = static_cast<char*>(const_cast<void*>(params.grad)) + r * params.grad_stride * size;
  char* out = static_cast<char*>(params.out) + r * params.out_stride * size;
  if (factor == 1 && in == out) return;
  const RowPointer from{in, params.dtype, size}, to{out, params.dtype, size};
  alignas(64) R scratch[kBlock + V::kWidth], product[kBlock + V::kWidth];
  for (int64_t start = 0; start < params.columns; start += kBlock) {
    const int64_t n = params.columns - start < kBlock ? params.columns - start : kBlock;
    const R* x = load_block<V>(from, start, n, scratch);
    for (int64_t i = 0; i < n; i += V::kWidth) (V::load(x + i) * V(factor)).store(product + i);
    store_block<V>(product, n, to, start, false);
  }
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
