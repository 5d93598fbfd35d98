#include "shared_memory.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "cluster.h"
#include "global_memory.h"

namespace emulation {

namespace {

// It is NaN in each element type, and rare enough among their NaN.
constexpr uint16_t kPoison = 0x7fe5;

std::string name_of(uint32_t offset) {
  for (const Variable& variable : cluster->kernel.variables) {
    if (variable.bytes && offset >= variable.offset && offset < variable.offset + variable.bytes) {
      return std::string("the shared variable ") + variable.name;
    }
  }
  return offset < kStaticBytes ? "shared memory that no variable occupies"
                               : "dynamic shared memory at byte " + std::to_string(offset - kStaticBytes);
}

Block* owner_of(const void* address) {
  for (const auto& block : cluster->blocks) {
    if (block->memory.holds(address)) return block.get();
  }
  return nullptr;
}

// The bytes whose accesses are recorded together.
uint32_t step_at(uint32_t offset) { return offset < kStaticBytes ? 4 : kVector; }

void check_vector(const void* address, bool writes) {
  if (reinterpret_cast<uintptr_t>(address) % kVector) fail("an access of 16 bytes that is not aligned");
  check_global(address, kVector, writes);
}

}  // namespace

SharedMemory::SharedMemory(size_t dynamic_bytes)
    : dynamic_bytes_(dynamic_bytes),
      memory_((kStaticBytes + dynamic_bytes + kGuardBytes + sizeof(Line) - 1) / sizeof(Line)),
      dynamic_cells_(dynamic_bytes / kVector) {
  for (size_t i = 0; i < memory_.size() * sizeof(Line); i += 2) std::memcpy(base() + i, &kPoison, 2);
}

bool SharedMemory::holds(const void* address) const {
  return address >= base() && address < base() + memory_.size() * sizeof(Line);
}

uint32_t SharedMemory::offset_of(const void* address) const {
  return static_cast<uint32_t>(static_cast<const char*>(address) - base());
}

bool SharedMemory::is_dynamic(uint32_t offset, uint32_t bytes) const {
  return offset >= kStaticBytes && offset + size_t{bytes} <= kStaticBytes + dynamic_bytes_;
}

SharedMemory::Cell& SharedMemory::cell(uint32_t offset) {
  if (offset < kStaticBytes) return static_cells_[offset / 4 * 4];
  if (!is_dynamic(offset, 1)) fail("an access behind the dynamic shared memory that the launch requested");
  return dynamic_cells_[(offset - kStaticBytes) / kVector];
}

bool SharedMemory::is_poison(uint32_t offset, uint32_t bytes) const {
  for (uint32_t i = 0; i < bytes; i += 2) {
    uint16_t now;
    std::memcpy(&now, base() + offset + i, 2);
    if (now != kPoison) return false;
  }
  return true;
}

void SharedMemory::read(uint32_t offset) {
  Cell& read = cell(offset);
  if (read.in_flight) fail("a read of " + name_of(offset) + ", into which a copy is in flight");
  if (read.written.time == 0) {
    // Scalar writes to dynamic memory are not recorded: they show by what they have overwritten.
    const uint32_t bytes = offset < kStaticBytes ? 4 : 2;
    for (uint32_t i = 0; i < (offset < kStaticBytes ? 4 : kVector); i += bytes) {
      if (is_poison(offset + i, bytes)) fail("a read of " + name_of(offset) + ", which nobody has written");
    }
  } else if (!self->clock.knows(read.written)) {
    const bool copied = read.written.component >= cluster->threads.size() + cluster->blocks.size();
    fail("a read of " + name_of(offset) +
         (copied ? " without a wait for the copy that filled it" : ", which races with the write before it"));
  }
  // Mostly one thread reads a cell again and again, or each thread reads it once.
  if (!read.readers.empty() && read.readers.back().component == self->id) read.readers.pop_back();
  read.readers.push_back(self->clock.now());
}

void SharedMemory::check_order(const Cell& cell, uint32_t offset, const char* access) const {
  if (cell.in_flight) fail(std::string(access) + name_of(offset) + ", into which a copy is in flight");
  if (!self->clock.knows(cell.written)) {
    fail(std::string(access) + name_of(offset) + ", which races with the write before it");
  }
  for (const Event& reader : cell.readers) {
    if (!self->clock.knows(reader)) {
      fail(std::string(access) + name_of(offset) + ", which races with a read of the value before it");
    }
  }
}

// A copy engine may not see a thread's write that no fence has ordered before the copy.
void SharedMemory::check_fence(const Cell& cell, uint32_t offset) const {
  const Event written = cell.written;
  if (written.time == 0 || written.component >= cluster->threads.size()) return;
  const std::vector<uint32_t>& fences = cluster->threads[written.component]->fences;
  const auto next = std::lower_bound(fences.begin(), fences.end(), written.time);
  if (next != fences.end() && self->clock.knows({written.component, *next})) return;
  fail("a copy to " + name_of(offset) + ", which a thread has written without a fence before the copy");
}

void SharedMemory::write(uint32_t offset) {
  Cell& written = cell(offset);
  check_order(written, offset, "a write to ");
  written.written = self->clock.now();
  written.readers.clear();
}

void SharedMemory::begin_landing(uint32_t offset, uint32_t bytes, bool by_engine) {
  const uint32_t step = step_at(offset);
  for (uint32_t i = 0; i < bytes; i += step) {
    Cell& target = cell(offset + i);
    check_order(target, offset + i, "a copy to ");
    if (by_engine) check_fence(target, offset + i);
    target.in_flight = true;
    target.readers.clear();
  }
  for (uint32_t i = 0; i < bytes; i += 2) std::memcpy(at(offset + i), &kPoison, 2);
}

void SharedMemory::land(uint32_t offset, const char* from, uint32_t bytes, Event landed) {
  if (!is_poison(offset, bytes)) {
    fail("a thread writes to " + name_of(offset) + " while a copy into it is in flight");
  }
  std::memcpy(at(offset), from, bytes);
  const uint32_t step = step_at(offset);
  for (uint32_t i = 0; i < bytes; i += step) {
    Cell& target = cell(offset + i);
    target.in_flight = false;
    target.written = landed;
  }
}

void SharedMemory::check_guard() {
  const auto end = static_cast<uint32_t>(kStaticBytes + dynamic_bytes_);
  if (!is_poison(end, kGuardBytes)) fail("a write behind the dynamic shared memory");
}

uint32_t shared_address(const void* address) {
  SharedMemory& memory = self->block->memory;
  if (!memory.holds(address)) fail("an address that is not in the block's shared memory");
  return memory.offset_of(address);
}

void* at_shared_address(size_t address) { return self->block->memory.at(static_cast<uint32_t>(address)); }

SharedAddress locate(uint32_t address) {
  const uint32_t rank = address >> kRankShift, offset = address & ((1u << kRankShift) - 1);
  Block* const block = rank == 0 ? self->block : cluster->blocks.at(rank - 1).get();
  return {block, offset};
}

void on_vector_read(const void* address) {
  if (!self || on_own_stack(address)) return;
  Block* const owner = owner_of(address);
  if (!owner) return check_vector(address, false);
  if (owner != self->block) fail("a read of another block's shared memory through a plain pointer");
  const uint32_t offset = owner->memory.offset_of(address);
  if (offset % kVector) fail("an access of 16 bytes to shared memory that is not aligned");
  for (uint32_t i = 0; i < kVector; i += step_at(offset)) owner->memory.read(offset + i);
}

void on_vector_write(const void* address) {
  if (!self || on_own_stack(address)) return;
  Block* const owner = owner_of(address);
  if (!owner) return check_vector(address, true);
  if (owner != self->block) fail("a write to another block's shared memory through a plain pointer");
  const uint32_t offset = owner->memory.offset_of(address);
  if (offset % kVector) fail("an access of 16 bytes to shared memory that is not aligned");
  for (uint32_t i = 0; i < kVector; i += step_at(offset)) owner->memory.write(offset + i);
}

void on_word_read(const void* word) {
  if (!self->block->memory.holds(word)) fail("a read of a shared variable of another block");
  self->block->memory.read(self->block->memory.offset_of(word));
}

void on_word_write(const void* word) {
  if (!self->block->memory.holds(word)) fail("a write to a shared variable of another block");
  self->block->memory.write(self->block->memory.offset_of(word));
}

unsigned new_variable() {
  static unsigned count = 0;
  return count++;
}

void* variable_of_block(unsigned number, const char* name, size_t bytes) {
  Kernel& kernel = cluster->kernel;
  if (kernel.variables.size() <= number) kernel.variables.resize(number + 1);
  Variable& variable = kernel.variables[number];
  if (variable.bytes == 0) {
    variable = {kernel.static_bytes, bytes, name};
    kernel.static_bytes += (bytes + kVector - 1) / kVector * kVector;
    if (kernel.static_bytes > kStaticBytes) fail("more shared variables than the emulation has room for");
  }
  return self->block->memory.at(static_cast<uint32_t>(variable.offset));
}

char* dynamic_shared() { return self->block->memory.dynamic(); }

}  // namespace emulation
