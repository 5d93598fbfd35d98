#include "labels.h"

#include <algorithm>

namespace fastkd::cpu {
namespace {

template <class Real>
void write_mean_weights(const int64_t* labels, int64_t rows, int64_t ignore_index, Real* weights) {
  const int64_t counted = rows - std::count(labels, labels + rows, ignore_index);
  const Real each = Real(1) / static_cast<Real>(std::max<int64_t>(counted, 1));
  for (int64_t r = 0; r < rows; ++r) weights[r] = labels[r] == ignore_index ? Real(0) : each;
}

}  // namespace

void mean_weights(const int64_t* labels, int64_t rows, int64_t ignore_index, void* weights, bool wide) {
  if (wide) {
    write_mean_weights(labels, rows, ignore_index, static_cast<double*>(weights));
  } else {
    write_mean_weights(labels, rows, ignore_index, static_cast<float*>(weights));
  }
}

}  // namespace fastkd::cpu
