// Memory for large gradients. A freed block is kept for the next one, so that in a training loop the system
// does not map new pages in every step, which takes as long as the kernel.
//
// Kept blocks are marked as free for the system (MADV_FREE): when memory becomes short, it takes their pages
// without asking. Until then they count as memory of the process.
#pragma once

#include <cstdint>

namespace fastkd::cpu {

// A block of memory. Its destructor keeps the block for the next one, or frees it.
//
// Callers hold Python's lock: nothing here is protected by another one, which also makes a fork safe.
class Block {
 public:
  // Takes the smallest kept block that is large enough, or a new one. Throws std::bad_alloc.
  explicit Block(int64_t bytes);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  void* data_;
  int64_t bytes_;
  int64_t capacity_;
};

// Bytes of the blocks that are kept.
int64_t kept_bytes();

// Keeps at most `limit` bytes from now on, and never more than were in use at the same time; frees what
// exceeds that. A limit of 0 also forgets how many were in use. Returns the limit before, which is at first
// the largest number.
int64_t keep_at_most(int64_t limit);

}  // namespace fastkd::cpu
