// Calls a function with the functor of a divergence that is known at run time only.
#pragma once

#include "../params.h"
#include "alpha.h"
#include "alpha_beta.h"
#include "contract.h"
#include "decoupled.h"
#include "forward_kl.h"
#include "hellinger.h"
#include "jeffreys.h"
#include "jsd.h"
#include "kl_tvd.h"
#include "log_acceptance.h"
#include "none.h"
#include "pearson_chi2.h"
#include "renyi.h"
#include "reverse_kl.h"
#include "skew_forward_kl.h"
#include "skew_reverse_kl.h"
#include "triangular.h"
#include "tvd.h"

namespace fastkd {
inline namespace FASTKD_ISA {

// Returns the divergence that a call computes: none where it has no weight in the loss.
inline Divergence divergence_of(const DenseParams& params) {
  return params.kd_weight == 0 ? Divergence::kNoDivergence : params.divergence;
}

template <class Body>
inline void visit_divergence(Divergence divergence, double alpha, double beta, const Body& body) {
  switch (divergence) {
#define FASTKD_CASE(name, Functor, arguments) \
  case Divergence::k##Functor:                \
    check_functor<Functor>();                 \
    return body(Functor arguments);
    FASTKD_DIVERGENCES(FASTKD_CASE)
#undef FASTKD_CASE
  }
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
