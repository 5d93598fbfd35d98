#include "ptx.h"

#include <algorithm>
#include <cctype>
#include <stdexcept>
#include <utility>

#include "cluster.h"
#include "numbers.h"

namespace emulation {

namespace {

constexpr size_t kMostRegisters = 16;
const std::vector<std::string> kSpecialRegisters = {"%cluster_ctarank", "%cluster_nctarank"};

uint64_t special_register(uint64_t number) {
  return number == 0 ? self->block->rank : cluster->blocks.size();
}

float float_of(uint64_t bits) {
  const auto low = static_cast<uint32_t>(bits);
  float x;
  std::memcpy(&x, &low, sizeof x);
  return x;
}

}  // namespace

// The registers of a running program, and the operands of its current instruction.
class Program::Frame {
 public:
  Frame(std::initializer_list<Output> outputs, std::initializer_list<uint64_t> inputs)
      : outputs_(outputs.begin()), inputs_(inputs.begin()) {}

  uint64_t operator[](size_t i) const {
    const Operand& operand = instruction->operands[i];
    switch (operand.kind) {
      case Operand::Kind::kInput:
        return inputs_[operand.value];
      case Operand::Kind::kRegister:
        return registers[operand.value];
      case Operand::Kind::kSpecial:
        return special_register(operand.value);
      case Operand::Kind::kConstant:
        return operand.value;
      default:
        fail("PTX that reads an operand which is for output alone");
    }
  }
  uint32_t word(size_t i) const { return static_cast<uint32_t>((*this)[i]); }
  float real(size_t i) const { return float_of((*this)[i]); }

  void set(size_t i, uint64_t value) {
    const Operand& operand = instruction->operands[i];
    if (operand.kind == Operand::Kind::kOutput) {
      const Output& output = outputs_[operand.value];
      std::memcpy(output.variable, &value, output.bytes);
    } else if (operand.kind == Operand::Kind::kRegister) {
      registers[operand.value] = value;
    } else if (operand.kind != Operand::Kind::kSink) {
      fail("PTX that writes to an operand which is for input alone");
    }
  }

  const Instruction* instruction = nullptr;
  uint64_t registers[kMostRegisters];

 private:
  const Output* outputs_;
  const uint64_t* inputs_;
};

namespace {

using Frame = Program::Frame;

template <bool kOfCluster>
void try_wait(Frame& f) {
  f.set(0, cluster->async.try_wait(f.word(1), f.word(2) % 2, kOfCluster));
}

void map_address(Frame& f) {
  const uint32_t rank = f.word(2);
  if (rank >= cluster->blocks.size()) fail("mapa with a rank that is not in the cluster");
  f.set(0, (f.word(1) & ((1u << kRankShift) - 1)) | (rank + 1) << kRankShift);
}

void arrive_once(Frame& f) { cluster->async.arrive(f.word(1), 1, 0); }

struct Known {
  const char* name;
  size_t operands;
  Program::Handler handler;
};

const Known kInstructions[] = {
    {"mov.u32", 2, [](Frame& f) { f.set(0, f.word(1)); }},
    {"setp.lt.f32", 3, [](Frame& f) { f.set(0, f.real(1) < f.real(2)); }},
    {"selp.f32", 4, [](Frame& f) { f.set(0, f.word(3) ? f.word(1) : f.word(2)); }},
    {"ex2.approx.ftz.f32", 2, [](Frame& f) { f.set(0, input(ex2_approx_ftz(f.real(1)))); }},
    {"lg2.approx.ftz.f32", 2, [](Frame& f) { f.set(0, input(lg2_approx_ftz(f.real(1)))); }},
    {"mapa.shared::cluster.u32", 3, map_address},
    {"st.shared::cluster.u32", 2, [](Frame& f) { cluster->async.store(f.word(0), f.word(1)); }},
    {"st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32", 3,
     [](Frame& f) { cluster->async.begin_store(f.word(0), {f.word(1)}, f.word(2)); }},
    {"st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32", 6,
     [](Frame& f) {
       cluster->async.begin_store(f.word(0), {f.word(1), f.word(2), f.word(3), f.word(4)}, f.word(5));
     }},
    {"barrier.cluster.arrive.release.aligned", 0, [](Frame&) { cluster->arrive(true); }},
    {"barrier.cluster.arrive.relaxed.aligned", 0, [](Frame&) { cluster->arrive(false); }},
    {"barrier.cluster.wait.acquire.aligned", 0, [](Frame&) { cluster->wait(); }},
    {"mbarrier.init.shared::cta.b64", 2, [](Frame& f) { cluster->async.initialise(f.word(0), f.word(1)); }},
    {"mbarrier.expect_tx.relaxed.cta.shared::cta.b64", 2,
     [](Frame& f) { cluster->async.expect(f.word(0), f.word(1)); }},
    {"mbarrier.arrive.expect_tx.shared::cta.b64", 3,
     [](Frame& f) { cluster->async.arrive(f.word(1), 1, f.word(2)); }},
    {"mbarrier.arrive.shared::cta.b64", 2, arrive_once},
    {"mbarrier.arrive.shared::cluster.b64", 2, arrive_once},
    {"mbarrier.arrive.release.cluster.shared::cluster.b64", 2, arrive_once},
    {"mbarrier.try_wait.parity.shared::cta.b64", 3, try_wait<false>},
    {"mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64", 3, try_wait<true>},
    {"fence.proxy.async.shared::cta", 0,
     [](Frame&) {
       cluster->async.fence_mbarriers(false);
       self->fence_writes();
     }},
    {"fence.mbarrier_init.release.cluster", 0, [](Frame&) { cluster->async.fence_mbarriers(true); }},
    {"cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes", 4,
     [](Frame& f) {
       cluster->async.begin_copy(f.word(0), reinterpret_cast<const char*>(f[1]), f.word(2), f.word(3));
     }},
};

std::vector<std::string> split(const std::string& text, const std::string& separators) {
  std::vector<std::string> parts;
  std::string part;
  for (const char c : text + separators[0]) {
    if (separators.find(c) == std::string::npos) {
      part += c;
    } else if (!part.empty()) {
      parts.push_back(std::exchange(part, {}));
    }
  }
  return parts;
}

class BadText : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

const std::string kBetweenTokens = ", \n\t[]{}";

}  // namespace

Program::Program(const char* text, size_t outputs) : outputs_(outputs) {
  try {
    parse(text);
  } catch (const BadText& fault) {
    fault_ = fault.what();
  }
}

void Program::parse(const std::string& text) {
  for (const std::string& statement : split(text, ";")) parse_statement(statement);
  for (const auto& [branch, label] : branches_) {
    const auto found = std::find(labels_.begin(), labels_.end(), label);
    if (found == labels_.end()) throw BadText("PTX that branches to a label which is not there: " + label);
    instructions_[branch].target = label_positions_[found - labels_.begin()];
  }
  if (registers_.size() > kMostRegisters) throw BadText("PTX with more registers than the emulation has");
}

int Program::register_of(const std::string& name) const {
  const auto found = std::find(registers_.begin(), registers_.end(), name);
  if (found == registers_.end()) throw BadText("PTX with a register that is not declared: " + name);
  return static_cast<int>(found - registers_.begin());
}

Program::Operand Program::parse_operand(const std::string& text) {
  using Kind = Operand::Kind;
  if (text == "_") return {Kind::kSink, 0};
  if (std::isdigit(text[0])) return {Kind::kConstant, std::stoull(text, nullptr, 0)};
  if (text.rfind("%%", 0) == 0) {
    const auto found = std::find(kSpecialRegisters.begin(), kSpecialRegisters.end(), text.substr(1));
    if (found == kSpecialRegisters.end())
      throw BadText("a PTX register that the emulation does not know: " + text);
    return {Kind::kSpecial, static_cast<uint64_t>(found - kSpecialRegisters.begin())};
  }
  if (text[0] == '%') {
    const size_t number = std::stoul(text.substr(1));
    return number < outputs_ ? Operand{Kind::kOutput, number} : Operand{Kind::kInput, number - outputs_};
  }
  return {Kind::kRegister, static_cast<uint64_t>(register_of(text))};
}

// Parses a declaration of registers, or `label: @!predicate instruction operands` without the parts it lacks.
void Program::parse_statement(const std::string& text) {
  std::vector<std::string> tokens = split(text, kBetweenTokens);
  if (tokens.empty()) return;
  if (tokens[0] == ".reg") {
    registers_.insert(registers_.end(), tokens.begin() + 2, tokens.end());
    return;
  }
  if (tokens[0].back() == ':') {
    labels_.push_back(tokens[0].substr(0, tokens[0].size() - 1));
    label_positions_.push_back(instructions_.size());
    tokens.erase(tokens.begin());
    if (tokens.empty()) return;
  }
  Instruction instruction;
  if (tokens[0][0] == '@') {
    instruction.negated = tokens[0][1] == '!';
    instruction.predicate = register_of(tokens[0].substr(instruction.negated ? 2 : 1));
    tokens.erase(tokens.begin());
  }
  const std::string name = tokens[0];
  tokens.erase(tokens.begin());
  if (name == "bra") {
    branches_.emplace_back(instructions_.size(), tokens.at(0));
    instructions_.push_back(instruction);
    return;
  }
  const auto known = std::find_if(std::begin(kInstructions), std::end(kInstructions),
                                  [&](const Known& each) { return name == each.name; });
  if (known == std::end(kInstructions))
    throw BadText("a PTX instruction that the emulation does not know: " + name);
  if (tokens.size() != known->operands)
    throw BadText("a PTX instruction with too many or too few operands: " + name);
  instruction.handler = known->handler;
  for (const std::string& token : tokens) instruction.operands.push_back(parse_operand(token));
  instructions_.push_back(std::move(instruction));
}

void Program::run(std::initializer_list<Output> outputs, std::initializer_list<uint64_t> inputs) const {
  if (!fault_.empty()) fail(fault_);
  Frame frame(outputs, inputs);
  for (size_t next = 0; next < instructions_.size();) {
    const Instruction& instruction = instructions_[next++];
    if (instruction.predicate >= 0 && (frame.registers[instruction.predicate] != 0) == instruction.negated) {
      continue;
    }
    if (!instruction.handler) {
      next = instruction.target;
      continue;
    }
    frame.instruction = &instruction;
    instruction.handler(frame);
  }
}

}  // namespace emulation
