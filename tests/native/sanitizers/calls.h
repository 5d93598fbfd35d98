// Calls of the CPU kernels on arrays whose surroundings are poisoned, and the checks of their results.
//
// Every array ends where its heap allocation ends. Memory that a call must not read or write (gaps between
// rows, padding of the inputs, ignored rows) is poisoned.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cpu/dispatch.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

using namespace fastkd;

namespace {

constexpr double kInf = INFINITY;
constexpr int64_t kIgnored = -100;

long calls = 0;

#define REQUIRE(condition, what)                                                             \
  if (!(condition)) {                                                                        \
    std::fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, what, describe(p).c_str()); \
    std::exit(1);                                                                            \
  }

int64_t size_of(Dtype dtype) { return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2; }

std::string describe(const DenseParams& p) {
  char text[256];
  std::snprintf(text, sizeof text, "divergence %d, rows %ld, vocab %ld, dtypes %d %d, phase %d, T %g %g",
                int(p.divergence), long(p.rows), long(p.vocab), int(p.student.dtype), int(p.teacher.dtype),
                int(p.phase), p.temperature, p.teacher_temperature);
  return text;
}

// An array of exactly n numbers, without spare memory behind them.
template <class T>
struct Array {
  std::unique_ptr<T[]> owned;
  int64_t count;
  explicit Array(int64_t n, T value = T()) : owned(new T[n]), count(n) {
    for (int64_t i = 0; i < n; ++i) owned[i] = value;
  }
  T* data() const { return owned.get(); }
};

// Numbers of the dtype of the arithmetic: float, or double if `wide`.
struct Reals {
  bool wide;
  Array<float> narrow;
  Array<double> full;
  Reals(int64_t n, bool w, double value) : wide(w), narrow(w ? 0 : n, float(value)), full(w ? n : 0, value) {}
  void* data() const { return wide ? static_cast<void*>(full.data()) : narrow.data(); }
  double at(int64_t i) const { return wide ? full.data()[i] : narrow.data()[i]; }
  void set(int64_t i, double x) { wide ? full.data()[i] = x : narrow.data()[i] = float(x); }
  size_t bytes() const { return wide ? full.count * 8 : narrow.count * 4; }
};

uint16_t half_bits(double x, bool bf16) {
  // Only for numbers that both formats represent exactly, infinities and NaN.
  if (std::isnan(x)) return bf16 ? 0x7fc0 : 0x7e00;
  const float f = float(x);
  uint32_t bits;
  std::memcpy(&bits, &f, sizeof bits);
  if (bf16) return uint16_t(bits >> 16);
  const uint16_t sign = (bits >> 16) & 0x8000;
  if (std::isinf(x)) return sign | 0x7c00;
  if (x == 0) return sign;
  return sign | uint16_t(((((bits >> 23) & 0xff) - 112) << 10) | ((bits >> 13) & 0x3ff));
}

enum class Layout { kDense, kGaps, kPadded, kEveryOther, kTransposed };
constexpr Layout kLayouts[] = {Layout::kDense, Layout::kGaps, Layout::kPadded, Layout::kEveryOther,
                               Layout::kTransposed};

// A matrix of logits or gradients whose last element is the last of its allocation.
class Matrix {
 public:
  Matrix(int64_t rows, int64_t vocab, Dtype dtype, Layout layout) : rows_(rows), vocab_(vocab) {
    const int64_t columns = vocab + (layout == Layout::kPadded ? 5 : 0);
    const int64_t step = layout == Layout::kTransposed ? rows : layout == Layout::kEveryOther ? 2 : 1;
    // An odd gap gives every row another alignment.
    const int64_t stride = layout == Layout::kTransposed   ? 1
                           : layout == Layout::kEveryOther ? 2 * columns
                           : layout == Layout::kGaps       ? columns + 3
                                                           : columns;
    const int64_t before = layout == Layout::kDense ? 0 : 1;
    const int64_t last = rows > 0 && columns > 0 ? (rows - 1) * stride + (columns - 1) * step + 1 : 0;
    memory_ = std::make_unique<Array<char>>((before + last) * size_of(dtype));
    view_.data = memory_->data() + before * size_of(dtype);
    view_.dtype = dtype;
    view_.outer_stride = stride;
    view_.column_stride = step;
    view_.columns = columns;
  }
  ~Matrix() { ASAN_UNPOISON_MEMORY_REGION(memory_->data(), memory_->count); }

  const Rows& view() const { return view_; }
  char* at(int64_t r, int64_t c) const {
    return static_cast<char*>(view_.data) +
           (r * view_.outer_stride + c * view_.column_stride) * size_of(view_.dtype);
  }
  void set(int64_t r, int64_t c, double x) const {
    if (view_.dtype == Dtype::kFloat64) std::memcpy(at(r, c), &x, 8);
    const float f = float(x);
    if (view_.dtype == Dtype::kFloat32) std::memcpy(at(r, c), &f, 4);
    const uint16_t h = half_bits(x, view_.dtype == Dtype::kBFloat16);
    if (size_of(view_.dtype) == 2) std::memcpy(at(r, c), &h, 2);
  }
  bool zero(int64_t r, int64_t c) const {
    char bytes[8] = {}, zeros[8] = {};
    std::memcpy(bytes, at(r, c), size_of(view_.dtype));
    return std::memcmp(bytes, zeros, 8) == 0;
  }
  // Poisons the gaps between the rows, and the padding of an input (`read_only`).
  void poison_gaps(bool read_only) const {
    if (view_.column_stride != 1) return;
    const int64_t used = read_only ? vocab_ : view_.columns;
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t end = r + 1 < rows_ ? view_.outer_stride : view_.columns;
      ASAN_POISON_MEMORY_REGION(at(r, used), (end - used) * size_of(view_.dtype));
    }
  }
  void poison_row(int64_t r) const {
    if (view_.column_stride == 1) ASAN_POISON_MEMORY_REGION(at(r, 0), vocab_ * size_of(view_.dtype));
  }

 private:
  int64_t rows_, vocab_;
  std::unique_ptr<Array<char>> memory_;
  Rows view_;
};

// Quarters in [-8, 8], which every dtype holds exactly.
double logit(std::mt19937& random) { return int(random() % 65) / 4.0 - 8; }

struct Case {
  Divergence divergence;
  Dtype student, teacher;
  int64_t rows, vocab;
  Layout layout;
  double temperature, teacher_temperature;
  bool in_place, phases, sharded, bare;
};

// Fills both sides with logits. Rows 1 and 4 are ignored, row 2 holds NaN, row 3 has -inf on either side and
// on both, row 5 holds nothing but -inf.
void fill(const Case& c, const Matrix& student, const Matrix& teacher) {
  std::mt19937 random(7);
  for (int64_t r = 0; r < c.rows; ++r) {
    for (int64_t v = 0; v < c.vocab; ++v) {
      const bool hidden_s = r == 5 || (r == 3 && v % 5 == 1), hidden_t = r == 5 || (r == 3 && v % 7 == 1);
      student.set(r, v, hidden_s ? -kInf : logit(random));
      teacher.set(r, v, hidden_t ? -kInf : logit(random));
    }
    if (r == 2 && c.vocab > 0) student.set(r, c.vocab - 1, NAN);
  }
}

// The losses, metrics and gradients of one call.
struct Results {
  Reals row_loss, metrics;
  Matrix grad_student, grad_teacher;
  Results(const Case& c, bool wide)
      : row_loss(c.rows, wide, NAN),
        metrics(c.rows * metric::kCount, wide, NAN),
        grad_student(c.rows, c.vocab, c.student, c.layout),
        grad_teacher(c.rows, c.vocab, c.teacher, c.layout) {}
};

// The entries of a sparse teacher; the last of each row is in the last column. Every third entry does not
// exist, nor do those of ignored rows; their indices are far outside the vocabulary.
struct Entries {
  static constexpr Tail kTails[] = {Tail::kRenormalize, Tail::kBucket, Tail::kDrop};
  static constexpr Divergence kDivergences[] = {Divergence::kForwardKL, Divergence::kReverseKL,
                                                Divergence::kHellinger};
  int64_t entries;
  Array<int64_t> indices;
  Reals logprobs, grad;
  SparseTeacher teacher;

  Entries(const Case& c, bool wide)
      : entries(c.vocab < 5 ? c.vocab : 5),
        indices(c.rows * entries, int64_t(1) << 60),
        logprobs(c.rows * entries, wide, -kInf),
        grad(c.rows * entries, wide, NAN) {
    for (int64_t r = 0; r < c.rows; ++r) {
      for (int64_t k = 0; k < entries; ++k) {
        if (!exists(r, k)) continue;
        indices.data()[r * entries + k] = k == entries - 1 ? c.vocab - 1 : k * (c.vocab / entries);
        logprobs.set(r * entries + k, -2.0 - double(k));
      }
    }
    teacher.indices = indices.data();
    teacher.logprobs = logprobs.data();
    teacher.grad = c.bare ? nullptr : grad.data();
    teacher.entries = entries;
    teacher.tail = kTails[c.vocab % 3];
    const int turn = int(c.layout) + int(c.student);
    teacher.divergence = teacher.tail == Tail::kDrop ? Divergence::kForwardKL : kDivergences[turn % 3];
    teacher.has_rest = teacher.tail == Tail::kBucket || teacher.divergence != Divergence::kReverseKL;
    teacher.class_temperature = teacher.tail == Tail::kBucket ? 1.7 : 1.0;
  }

  static bool exists(int64_t r, int64_t k) { return r % 3 != 1 && r != 8 && k % 3 != 1; }
};

void run(const Case& c, const std::string& isa, int threads, Results& out) {
  const bool wide = c.student == Dtype::kFloat64 || c.teacher == Dtype::kFloat64;
  Matrix student(c.rows, c.vocab, c.student, c.layout), teacher(c.rows, c.vocab, c.teacher, c.layout);
  fill(c, student, teacher);

  Array<int64_t> labels(c.rows);
  Reals loss_scale(c.rows, wide, 0.5), grad_scale(c.rows, wide, 0.25), coefficient(c.rows, wide, -0.5);
  for (int64_t r = 0; r < c.rows; ++r) labels.data()[r] = r % 3 == 1 ? kIgnored : c.vocab - 1;
  if (c.rows > 6) labels.data()[6] = c.vocab + 3;  // a label of another shard, or an invalid one
  if (c.rows > 8) loss_scale.set(8, 0), grad_scale.set(8, 0);

  DenseParams p;
  p.rows = c.rows;
  p.vocab = c.vocab;
  p.divergence = c.divergence;
  p.temperature = c.temperature;
  p.teacher_temperature = c.teacher_temperature;
  p.alpha = c.divergence == Divergence::kAlphaBeta ? -0.5 : 0.3;
  p.beta = c.divergence == Divergence::kAlphaBeta ? 2 : 0.4;
  p.ignore_index = kIgnored;
  p.wide = wide;
  p.sharded = c.sharded;
  p.student = student.view();
  p.teacher = teacher.view();
  p.loss_scale = loss_scale.data();
  p.grad_scale = grad_scale.data();
  p.row_loss = out.row_loss.data();
  p.coefficient = coefficient.data();
  p.labels = labels.data();
  if (!c.bare) {
    p.ce_weight = 0.5;
    p.label_smoothing = 0.1;
    p.z_loss = 1e-3;
    p.metrics = out.metrics.data();
  }
  p.grad_student = c.in_place ? student.view() : out.grad_student.view();
  p.grad_teacher = c.in_place ? teacher.view() : out.grad_teacher.view();
  const bool no_teacher =
      c.divergence == Divergence::kNoDivergence || c.divergence == Divergence::kOffSupport;
  if (no_teacher) {
    p.teacher = Rows{};
    if (c.divergence == Divergence::kOffSupport || c.in_place) p.grad_teacher = Rows{};
  }

  if (!c.in_place) {
    student.poison_gaps(true);
    teacher.poison_gaps(true);
    out.grad_student.poison_gaps(false);
    out.grad_teacher.poison_gaps(false);
    for (int64_t r = 1; r < c.rows; r += 3) student.poison_row(r), teacher.poison_row(r);
    if (c.rows > 8) student.poison_row(8), teacher.poison_row(8);
  }

  const Entries sparse(c, wide);
  const bool has_entries = c.divergence == Divergence::kOffSupport && !c.phases;
  if (has_entries) p.sparse = sparse.teacher, p.coefficient = nullptr;

  if (c.phases) {
    Array<double> record(c.rows * record::kCount);
    p.record = record.data();
    for (const Phase phase : {Phase::kStatistics, Phase::kSums, Phase::kDistant, Phase::kFinish}) {
      if (phase == Phase::kDistant && c.divergence != Divergence::kLogAcceptance) continue;
      p.phase = phase;
      cpu::dense_rows(p, isa, threads);
    }
  } else {
    cpu::dense_rows(p, isa, threads);
  }
  ++calls;

  for (int64_t r = 0; r < c.rows; ++r) {
    const bool ignored = r % 3 == 1 || r == 8;
    const double loss = out.row_loss.at(r);
    if (ignored) REQUIRE(loss == 0, "an ignored row has a loss");
    if (r == 2 && c.vocab > 0 && !(c.bare && no_teacher)) {
      REQUIRE(std::isnan(loss), "NaN went in and did not come out");
    }
    const Matrix& grad = c.in_place ? student : out.grad_student;
    for (int64_t v = ignored ? 0 : c.vocab; v < grad.view().columns; ++v) {
      REQUIRE(grad.zero(r, v), "a gradient where there is none");
    }
    for (int64_t k = 0; has_entries && !c.bare && k < sparse.entries; ++k) {
      const double by_entry = sparse.grad.at(r * sparse.entries + k);
      REQUIRE(sparse.exists(r, k) || by_entry == 0, "a gradient of an entry that does not exist");
      REQUIRE(!sparse.exists(r, k) || by_entry != 0, "no gradient of an entry");
    }
    if (p.grad_teacher.data == nullptr) continue;
    const Matrix& other = c.in_place ? teacher : out.grad_teacher;
    for (int64_t v = ignored || no_teacher ? 0 : c.vocab; v < other.view().columns; ++v) {
      REQUIRE(other.zero(r, v), "a teacher's gradient where there is none");
    }
  }
}

// Requires two results of the same call to have the same bits.
void compare(const Case& c, const Results& a, const Results& b) {
  DenseParams p;
  p.divergence = c.divergence;
  p.rows = c.rows;
  p.vocab = c.vocab;
  REQUIRE(std::memcmp(a.row_loss.data(), b.row_loss.data(), a.row_loss.bytes()) == 0, "losses differ");
  REQUIRE(std::memcmp(a.metrics.data(), b.metrics.data(), a.metrics.bytes()) == 0, "metrics differ");
  for (int64_t r = 0; r < c.rows; ++r) {
    for (int64_t v = 0; v < c.vocab; ++v) {
      REQUIRE(std::memcmp(a.grad_student.at(r, v), b.grad_student.at(r, v), size_of(c.student)) == 0,
              "gradients differ");
    }
  }
}

void run_scale(const std::string& isa, Dtype dtype, int64_t rows, int64_t columns, bool in_place,
               int threads) {
  const bool wide = dtype == Dtype::kFloat64;
  const Layout layout = in_place ? Layout::kDense : Layout::kGaps;
  Matrix grad(rows, columns, dtype, layout), out(rows, columns, dtype, layout);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t v = 0; v < columns; ++v) grad.set(r, v, double(v % 5));
  }
  grad.poison_gaps(true);
  out.poison_gaps(true);
  const int64_t factor_stride = rows % 2;
  Reals factor(factor_stride ? rows : 1, wide, 0.5);
  ScaleParams p;
  p.rows = rows;
  p.grad = grad.view();
  p.out = in_place ? grad.view() : out.view();
  p.factor = factor.data();
  p.factor_stride = factor_stride;
  p.wide = wide;
  cpu::scale_rows(p, isa, threads);
  ++calls;
}

}  // namespace
