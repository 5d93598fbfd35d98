#include "global_memory.h"

#include <map>

#include "cluster.h"

namespace emulation {

namespace {

bool restricted = false;
std::map<const char*, const char*> allowed[2];  // beginnings and ends, for reads and for writes

}  // namespace

void restrict_memory() {
  restricted = true;
  for (auto& ranges : allowed) ranges.clear();
}

void allow_all_memory() { restricted = false; }

void allow_memory(const void* begin, size_t bytes, bool for_writes) {
  const char* const first = static_cast<const char*>(begin);
  const char*& end = allowed[for_writes][first];
  if (!end || end < first + bytes) end = first + bytes;
}

void check_global(const void* address, size_t bytes, bool writes) {
  if (!restricted) return;
  const char* const first = static_cast<const char*>(address);
  auto after = allowed[writes].upper_bound(first);
  if (after == allowed[writes].begin() || (--after)->second < first + bytes) {
    fail(writes ? "a write outside of the tensors' rows" : "a read outside of the tensors' rows");
  }
}

}  // namespace emulation
