// Checks at compile time that a functor has the members that its traits ask for (Functor, functor.h). Without
// this the templates that use a missing member would report it, in dozens of lines.
#pragma once

#include <type_traits>

#include "functor.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// Arguments of the functors' members, for expressions that are never evaluated.
namespace any {
const Entry<float>& entry();
const Row<float>& row();
Row<float>& writable_row();
float number();
const Terms<float>& terms();
float& reference();
float* sums();
}  // namespace any

// `use` is a generic lambda whose return type is that of an expression.
template <class D, class Use>
constexpr bool compiles(const Use&) {
  return std::is_invocable<const Use&, const D&>::value;
}

// Whether D has a member that can be called like this.
#define FASTKD_HAS(call) compiles<D>([](const auto& d) -> decltype(void(d.call)) {})
// Whether D has a member template of its own in place of Functor's default.
#define FASTKD_OWN(member) \
  (!std::is_same<decltype(&D::template member<float>), decltype(&Functor::template member<float>)>::value)

// A type per function: GCC does not compare addresses at compile time under UndefinedBehaviorSanitizer.
template <double (*)(int)>
struct Identity {};

template <class D>
constexpr bool has_own_powers() {
  using Default = double (*)(int);
  if constexpr (std::is_same<decltype(&D::teacher_power), Default>::value &&
                std::is_same<decltype(&D::student_power), Default>::value) {
    return !std::is_same<Identity<&D::teacher_power>, Identity<&Functor::teacher_power>>::value ||
           !std::is_same<Identity<&D::student_power>, Identity<&Functor::student_power>>::value;
  }
  return true;
}

template <class D>
constexpr void check_functor() {
  static_assert(std::is_base_of<Functor, D>::value, "a functor has to be derived from Functor");
  static_assert(std::is_trivially_copyable<D>::value, "the bytes of a functor are copied to the GPU");
  static_assert(D::kStreams <= kMaxStreams && D::kSums <= kMaxSums, "too many streams or sums");
  if constexpr (D::kReadsTeacher) {
    static_assert(FASTKD_HAS(value(any::writable_row())), "a functor needs value(row)");
    static_assert(FASTKD_HAS(student(any::entry(), any::row())), "a functor needs student(entry, row)");
    static_assert(FASTKD_HAS(teacher(any::entry(), any::row())), "a functor needs teacher(entry, row)");
  }
  if constexpr (D::kStreams > 0) {
    static_assert(FASTKD_OWN(stream), "kStreams needs stream(entry, cross_shift, sums)");
    static_assert(has_own_powers<D>(), "kStreams needs teacher_power(k) or student_power(k)");
  }
  if constexpr (D::kSums > 0) {
    static_assert(FASTKD_OWN(sums), "kSums needs sums(entry, sums)");
    static_assert(D::kSumsRead == Fields::kProbabilities || D::kSumsRead == Fields::kAll,
                  "kSumsRead is kProbabilities or kAll");
  }
  if constexpr (D::kCross) {
    static_assert(D::kStreams > 0, "kCross needs streams");
    static_assert(FASTKD_HAS(terms(any::entry(), any::number())), "kCross needs terms(entry, cross_shift)");
    static_assert(FASTKD_HAS(add_terms(any::entry(), any::terms(), any::sums())),
                  "kCross needs add_terms(entry, terms, sums)");
  }
  static_assert(!D::kOwnPower || D::kCross, "kOwnPower needs kCross");
  if constexpr (D::kLog) {
    static_assert(D::kSums > 0, "kLog needs kSums");
    static_assert(FASTKD_HAS(log_of(any::entry())), "kLog needs log_of(entry)");
    static_assert(FASTKD_HAS(log_argument(any::entry(), any::reference())),
                  "kLog needs log_argument(entry, less_one)");
  }
  if constexpr (D::kDistant) {
    static_assert(D::kSums > 0, "kDistant needs kSums");
    static_assert(FASTKD_HAS(is_distant(any::sums())), "kDistant needs is_distant(sums)");
    static_assert(FASTKD_HAS(distant_exponent(any::entry(), any::row())),
                  "kDistant needs distant_exponent(entry, row)");
    static_assert(FASTKD_HAS(distant_sums(any::entry(), any::row(), any::number(), any::sums())),
                  "kDistant needs distant_sums(entry, row, top, sums)");
  }
  if constexpr (D::kSplitsLabel) {
    static_assert(FASTKD_OWN(label_student), "kSplitsLabel needs label_student(row)");
    static_assert(FASTKD_OWN(label_teacher), "kSplitsLabel needs label_teacher(row)");
  }
  if constexpr (D::kStudentReads == Fields::kStored) {
    static_assert(D::kSums > 0 && (!D::kLog || D::kSumsRead == Fields::kAll),
                  "kStored needs kSums, which read the logarithms of kLog");
    static_assert(FASTKD_HAS(stored(any::entry())), "kStored needs stored(entry)");
    static_assert(FASTKD_HAS(student(any::entry(), any::number(), any::row())),
                  "kStored needs student(entry, stored, row)");
  }
  if constexpr (D::kStudentReads == Fields::kTerms) {
    static_assert(D::kCross && !D::kLog, "kTerms needs kCross, and no kLog");
    static_assert(FASTKD_HAS(student(any::entry(), any::terms(), any::row())),
                  "kTerms needs student(entry, terms, row)");
  }
  static_assert(!D::kLinear || D::kStudentReads == Fields::kProbabilities,
                "kLinear needs kStudentReads = kProbabilities");
}

#undef FASTKD_HAS
#undef FASTKD_OWN

}  // namespace FASTKD_ISA
}  // namespace fastkd
