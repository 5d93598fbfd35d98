// The global memory that a kernel may access with vectors and bulk copies. Scalar accesses are not checked.
#pragma once

#include <cstddef>

namespace emulation {

// Forgets what was allowed, after which every access fails until memory is allowed.
void restrict_memory();
// Ends the restriction.
void allow_all_memory();
// Ranges that are allowed for the same kind of access are equal or disjoint.
void allow_memory(const void* begin, size_t bytes, bool for_writes);

void check_global(const void* address, size_t bytes, bool writes);

}  // namespace emulation
