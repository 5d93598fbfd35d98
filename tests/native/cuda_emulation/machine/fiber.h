// Threads that switch by themselves: each has a stack of its own.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>

namespace emulation {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Runs `body`, from its beginning or from where it has paused. Returns whether it has returned; otherwise
  // it has paused.
  bool resume(void (*body)());
  // Returns from resume(). Called by the body.
  void pause();
  // Forgets a body that has not returned; what it owns is leaked.
  void abandon() { begun_ = false; }

  bool owns(const void* address) const;

 private:
  static void enter();

  ucontext_t start_;
  jmp_buf fiber_, caller_;
  void (*body_)() = nullptr;
  bool begun_ = false;
  char* stack_;
};

}  // namespace emulation
