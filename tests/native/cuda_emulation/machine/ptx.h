// An interpreter for the PTX in the kernels' asm statements, which the translation of the sources replaces by
// calls of Program::run().
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

namespace emulation {

// An operand of an asm statement: a variable that the statement writes, or a value that it reads.
struct Output {
  void* variable;
  size_t bytes;
};
template <class T>
Output output(T& variable) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a register");
  return {&variable, sizeof(T)};
}
template <class T>
uint64_t input(const T& value) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a register");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

class Program {
 public:
  Program(const char* text, size_t outputs);

  // Fails where the text has an instruction that the emulation does not know.
  void run(std::initializer_list<Output> outputs, std::initializer_list<uint64_t> inputs) const;

  class Frame;
  using Handler = void (*)(Frame&);

 private:
  struct Operand {
    enum class Kind { kOutput, kInput, kRegister, kConstant, kSpecial, kSink } kind;
    uint64_t value = 0;  // a constant, or the number of an operand, a register or a special register
  };
  struct Instruction {
    Handler handler = nullptr;  // null for a branch
    std::vector<Operand> operands;
    int predicate = -1;  // a register
    bool negated = false;
    size_t target = 0;  // of a branch
  };

  void parse(const std::string& text);
  Operand parse_operand(const std::string& text);
  void parse_statement(const std::string& text);
  int register_of(const std::string& name) const;

  size_t outputs_;
  std::string fault_;  // of the text
  std::vector<std::string> registers_, labels_;
  std::vector<size_t> label_positions_;
  std::vector<std::pair<size_t, std::string>> branches_;
  std::vector<Instruction> instructions_;
};

}  // namespace emulation
