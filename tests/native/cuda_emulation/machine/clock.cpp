#include "clock.h"

#include <algorithm>

namespace emulation {

namespace {

void raise(Times& times, const Times& more) {
  if (times.size() < more.size()) times.resize(more.size());
  for (size_t i = 0; i < more.size(); ++i) times[i] = std::max(times[i], more[i]);
}

}  // namespace

bool knows(const Times& times, Event event) {
  return event.time == 0 || (event.component < times.size() && times[event.component] >= event.time);
}

void Clock::learn(const Knowledge& more) {
  // The threads of a block learn the same things one after another, so the last answer is mostly the next.
  static Knowledge before, learned, after;
  if (others_ == more) return;
  if (before != others_ || learned != more) {
    Times both = *others_;
    raise(both, *more);
    before = others_, learned = more;
    after = both == *more ? more : std::make_shared<const Times>(std::move(both));
  }
  others_ = after;
}

void Clock::learn(Event event) {
  Gathering more;
  more.add(event);
  learn(more.close());
}

void Gathering::add(const Clock& clock) {
  add(clock.others());
  add(clock.now());
}

void Gathering::add(const Knowledge& knowledge) {
  if (last_ == knowledge) return;
  raise(times_, *knowledge);
  last_ = knowledge;
}

void Gathering::add(Event event) {
  if (times_.size() <= event.component) times_.resize(event.component + 1);
  times_[event.component] = std::max(times_[event.component], event.time);
}

Knowledge Gathering::close() {
  last_ = nullptr;
  auto all = std::make_shared<const Times>(std::move(times_));
  times_.clear();
  return all;
}

}  // namespace emulation
