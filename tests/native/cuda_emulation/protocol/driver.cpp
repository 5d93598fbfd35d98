// driver FROM TO: runs one random call of the cluster kernel for each seed in [FROM, TO), under a schedule of
// its own. Prints the first fault and exits with 3, or prints how many schedules it has run.
#include <cstdio>
#include <cstdlib>

#include "../call_memory.h"
#include "case.h"
#include "csrc/cuda/api.h"
#include "machine/launch.h"

namespace {

// Returns the fault that this seed shows, or an empty string.
std::string fault_of(uint64_t seed) {
  protocol::Case call(seed);
  emulation::schedule = emulation::Schedule::random(seed);
  emulation::clusters_at_once = call.clusters;
  emulation::restrict_memory_to(call.params);
  std::string fault;
  try {
    if (const char* error = fastkd::cuda::dense_rows(call.params, 0, nullptr)) {
      fault = std::string("the launch fails: ") + error;
    } else {
      fault = call.fault_of_results();
    }
  } catch (const emulation::Fault& found) {
    fault = found.what();
  }
  return fault.empty() ? fault : fault + " [" + call.describe() + "]";
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return std::fprintf(stderr, "usage: driver FROM TO\n"), 2;
  const uint64_t from = std::strtoull(arguments[1], nullptr, 10);
  const uint64_t to = std::strtoull(arguments[2], nullptr, 10);
  for (uint64_t seed = from; seed < to; ++seed) {
    const std::string fault = fault_of(seed);
    if (fault.empty()) continue;
    std::printf("seed %llu: %s\n", static_cast<unsigned long long>(seed), fault.c_str());
    return 3;
  }
  std::printf("%llu schedules, nothing found\n", static_cast<unsigned long long>(to - from));
}
