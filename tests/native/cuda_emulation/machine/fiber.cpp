#include "fiber.h"

#include <sys/mman.h>

#include <new>

namespace emulation {

namespace {

constexpr size_t kStackBytes = 64 << 10;
Fiber* entered = nullptr;

}  // namespace

// A page is backed by memory once it is touched, so that a stack costs what it uses.
Fiber::Fiber() {
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* const stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, kFlags, -1, 0);
  if (stack == MAP_FAILED) throw std::bad_alloc();
  stack_ = static_cast<char*>(stack);
}

Fiber::~Fiber() { munmap(stack_, kStackBytes); }

bool Fiber::owns(const void* address) const { return address >= stack_ && address < stack_ + kStackBytes; }

void Fiber::enter() {
  Fiber& self = *entered;
  self.body_();
  self.begun_ = false;
  _longjmp(self.caller_, 1);
}

// The first switch to a stack needs a context. All others are jumps, which make no system call.
bool Fiber::resume(void (*body)()) {
  if (_setjmp(caller_) != 0) return !begun_;
  if (begun_) _longjmp(fiber_, 1);
  begun_ = true;
  body_ = body;
  entered = this;
  getcontext(&start_);
  start_.uc_stack.ss_sp = stack_;
  start_.uc_stack.ss_size = kStackBytes;
  start_.uc_link = nullptr;
  makecontext(&start_, enter, 0);
  setcontext(&start_);
  throw std::bad_alloc();  // setcontext() returns only where it fails
}

void Fiber::pause() {
  if (_setjmp(fiber_) == 0) _longjmp(caller_, 1);
}

}  // namespace emulation
