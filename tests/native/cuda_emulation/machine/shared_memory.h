// The shared memory of a block: poison until it is written, and with a record of who wrote and read it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "clock.h"

namespace emulation {

struct Block;

// Declared variables lie below kStaticBytes, dynamic shared memory above; a guard follows.
constexpr uint32_t kStaticBytes = 16 << 10, kGuardBytes = 4096;
constexpr uint32_t kVector = 16;

class SharedMemory {
 public:
  explicit SharedMemory(size_t dynamic_bytes);

  char* at(uint32_t offset) { return base() + offset; }
  char* dynamic() { return at(kStaticBytes); }
  bool holds(const void* address) const;
  uint32_t offset_of(const void* address) const;
  bool is_dynamic(uint32_t offset, uint32_t bytes) const;

  // These report accesses that race with earlier ones, in the name of the thread that runs. An access to
  // declared variables concerns a word, one to dynamic memory 16 bytes.
  void read(uint32_t offset);
  void write(uint32_t offset);
  // The same for an asynchronous store or a copy (by the copy engine) that begins: nobody may read its target
  // until it has landed.
  void begin_landing(uint32_t offset, uint32_t bytes, bool by_engine);
  void land(uint32_t offset, const char* from, uint32_t bytes, Event landed);

  // Checks that nothing was written behind the dynamic memory.
  void check_guard();

 private:
  struct Cell {
    Event written;
    bool in_flight = false;
    std::vector<Event> readers;  // reads since it was written, the last of each thread included
  };

  char* base() { return reinterpret_cast<char*>(memory_.data()); }
  const char* base() const { return reinterpret_cast<const char*>(memory_.data()); }
  Cell& cell(uint32_t offset);
  void check_order(const Cell& cell, uint32_t offset, const char* access) const;
  void check_fence(const Cell& cell, uint32_t offset) const;
  bool is_poison(uint32_t offset, uint32_t bytes) const;

  size_t dynamic_bytes_;
  struct alignas(128) Line {
    char bytes[128];
  };
  std::vector<Line> memory_;
  std::vector<Cell> dynamic_cells_;                  // of 16 bytes
  std::unordered_map<uint32_t, Cell> static_cells_;  // of a word, by its offset
};

// An address as PTX sees it: the offset, and above it the rank of a block plus one, or 0 for the own block.
constexpr unsigned kRankShift = 24;
struct SharedAddress {
  Block* block;
  uint32_t offset;
};
uint32_t shared_address(const void* address);
void* at_shared_address(size_t address);  // of the own block
SharedAddress locate(uint32_t address);

// Accesses of 16 bytes to any memory.
void on_vector_read(const void* address);
void on_vector_write(const void* address);

void on_word_read(const void* word);
void on_word_write(const void* word);

// A word in shared memory whose accesses are checked, except for those through a pointer to it.
template <class T>
class Word {
 public:
  operator T() const {
    on_word_read(this);
    return value_;
  }
  Word& operator=(T value) {
    on_word_write(this);
    value_ = value;
    return *this;
  }
  T* operator&() { return &value_; }

 private:
  T value_;
};
template <class T>
using Watched = std::conditional_t<std::is_arithmetic_v<T> && sizeof(T) == 4, Word<T>, T>;

unsigned new_variable();
void* variable_of_block(unsigned number, const char* name, size_t bytes);
char* dynamic_shared();

// Returns the running block's instance of a __shared__ variable. Each declaration passes a lambda of its own,
// which makes its number unique, in each instance of a template.
template <class T, class Lambda>
T& shared_variable(const char* name, Lambda) {
  static const unsigned number = new_variable();
  return *static_cast<T*>(variable_of_block(number, name, sizeof(T)));
}

}  // namespace emulation
