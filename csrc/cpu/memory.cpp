#include "memory.h"

#include <algorithm>
#include <limits>
#include <new>
#include <vector>

#if defined(__linux__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

#include "dispatch.h"

namespace fastkd::cpu {
namespace {

// Blocks begin and end at huge pages, so that the system can map and mark whole ones.
constexpr int64_t kHuge = int64_t(2) << 20;

struct Kept {
  void* data;
  int64_t capacity;
};

// Never destroyed: tensors may be freed after the module's own objects, when the process ends.
struct Pool {
  std::vector<Kept> kept;
  int64_t kept_bytes = 0;
  int64_t used_bytes = 0;
  int64_t most_used = 0;
  int64_t limit = std::numeric_limits<int64_t>::max();
};
Pool& pool() {
  static Pool* const found = new Pool;
  return *found;
}

#if defined(__linux__) || defined(__APPLE__)
// The system's own pages, whatever allocator the process has: their size and their marks are ours to choose.
void* map(int64_t bytes) {
  const int64_t whole = bytes + kHuge;
  void* const found =
      mmap(nullptr, static_cast<size_t>(whole), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED) return nullptr;
  char* const begin = static_cast<char*>(found);
  const int64_t before = (kHuge - reinterpret_cast<intptr_t>(begin) % kHuge) % kHuge;
  if (before > 0) munmap(begin, static_cast<size_t>(before));
  munmap(begin + before + bytes, static_cast<size_t>(kHuge - before));
  advise_huge_pages(begin + before, bytes);
  return begin + before;
}

void unmap(void* data, int64_t bytes) { munmap(data, static_cast<size_t>(bytes)); }
#else
constexpr std::align_val_t kAlignment{kHuge};

void* map(int64_t bytes) { return ::operator new(static_cast<size_t>(bytes), kAlignment, std::nothrow); }

void unmap(void* data, int64_t) { ::operator delete(data, kAlignment); }
#endif

// Frees the blocks kept longest until `kept_bytes` is at most `bytes`.
void shrink(int64_t bytes) {
  Pool& p = pool();
  while (p.kept_bytes > std::max<int64_t>(0, bytes)) {
    const Kept oldest = p.kept.front();
    p.kept.erase(p.kept.begin());
    p.kept_bytes -= oldest.capacity;
    unmap(oldest.data, oldest.capacity);
  }
}

// The process never holds more than it has already used at one time.
int64_t allowed() {
  const Pool& p = pool();
  return std::min(p.limit, p.most_used - p.used_bytes);
}

// Whether the system may now take the block's pages. Where it has no such mark, blocks are not kept.
bool mark_free(void* data, int64_t bytes) {
#if defined(MADV_FREE)
  return madvise(data, static_cast<size_t>(bytes), MADV_FREE) == 0;
#else
  (void)data;
  (void)bytes;
  return false;
#endif
}

}  // namespace

Block::Block(int64_t bytes) : data_(nullptr), bytes_(bytes), capacity_((bytes + kHuge - 1) / kHuge * kHuge) {
  Pool& p = pool();
  auto best = p.kept.end();
  for (auto block = p.kept.begin(); block != p.kept.end(); ++block) {
    if (block->capacity < capacity_) continue;
    if (best == p.kept.end() || block->capacity < best->capacity) best = block;
  }
  if (best != p.kept.end()) {
    data_ = best->data;
    capacity_ = best->capacity;
    p.kept_bytes -= capacity_;
    p.kept.erase(best);
  }
  const int64_t most_used = p.most_used;
  p.used_bytes += capacity_;
  p.most_used = std::max(most_used, p.used_bytes);
  shrink(allowed());
  if (data_ == nullptr) data_ = map(capacity_);
  if (data_ == nullptr) {
    p.used_bytes -= capacity_;
    p.most_used = most_used;  // memory that could not be had was not in use
    throw std::bad_alloc();
  }
}

Block::~Block() {
  Pool& p = pool();
  p.used_bytes -= capacity_;
  if (capacity_ <= p.limit && mark_free(data_, capacity_)) {
    p.kept.push_back({data_, capacity_});
    p.kept_bytes += capacity_;
    shrink(allowed());
  } else {
    unmap(data_, capacity_);
  }
}

int64_t kept_bytes() { return pool().kept_bytes; }

int64_t keep_at_most(int64_t limit) {
  Pool& p = pool();
  const int64_t before = p.limit;
  p.limit = limit;
  if (limit == 0) p.most_used = p.used_bytes;
  shrink(allowed());
  return before;
}

}  // namespace fastkd::cpu
