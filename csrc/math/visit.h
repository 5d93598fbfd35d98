// From the divergence's number to its functor.
#pragma once

#include "../params.h"
#include "forward_kl.h"
#include "jsd.h"
#include "none.h"
#include "reverse_kl.h"

namespace fastkd {
inline namespace FASTKD_ISA {

template <class Body>
inline void visit_divergence(Divergence divergence, double beta, const Body& body) {
  switch (divergence) {
    case Divergence::kNone:
      return body(NoDivergence{});
    case Divergence::kForwardKL:
      return body(ForwardKL(beta));
    case Divergence::kReverseKL:
      return body(ReverseKL(beta));
    case Divergence::kJSD:
      return body(JSD(beta));
  }
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
