// Vector clocks: which events of a cluster each of its threads is ordered after.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace emulation {

// Components are the threads of the cluster, then its blocks (which have one event, their start), then its
// mbarriers (whose events are the completions of their phases). Events of a component are numbered from 1.
struct Event {
  unsigned component = 0;
  uint32_t time = 0;  // 0: no event, which everybody knows

  bool operator!=(const Event& other) const { return component != other.component || time != other.time; }
};

// The latest event of each component that is known.
using Times = std::vector<uint32_t>;
using Knowledge = std::shared_ptr<const Times>;

bool knows(const Times& times, Event event);

// The clock of one thread. Threads that have met at a barrier share what they know of each other.
class Clock {
 public:
  Clock() = default;
  Clock(unsigned self, Knowledge others) : self_(self), others_(std::move(others)) {}

  bool knows(Event event) const {
    return event.component == self_ ? event.time <= own_ : emulation::knows(*others_, event);
  }
  Event now() const { return {self_, own_}; }
  const Knowledge& others() const { return others_; }

  // Separates what the thread does from now on from what it has published so far.
  void advance() { ++own_; }
  void learn(const Knowledge& more);
  void learn(Event event);

 private:
  unsigned self_ = 0;
  uint32_t own_ = 1;
  Knowledge others_;
};

// Collects what the participants of a barrier know.
class Gathering {
 public:
  void add(const Clock& clock);
  void add(const Knowledge& knowledge);
  void add(Event event);
  bool knows(Event event) const { return emulation::knows(times_, event); }
  // Returns what was collected, and starts anew.
  Knowledge close();

 private:
  Times times_;
  Knowledge last_;  // added most recently: participants often share what they know
};

}  // namespace emulation
