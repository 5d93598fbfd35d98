// From the divergence's number to its functor.
#pragma once

#include "../params.h"
#include "alpha.h"
#include "alpha_beta.h"
#include "decoupled.h"
#include "forward_kl.h"
#include "hellinger.h"
#include "jeffreys.h"
#include "jsd.h"
#include "kl_tvd.h"
#include "log_acceptance.h"
#include "none.h"
#include "renyi.h"
#include "reverse_kl.h"
#include "skew_forward_kl.h"
#include "skew_reverse_kl.h"
#include "tvd.h"

namespace fastkd {
inline namespace FASTKD_ISA {

template <class Body>
inline void visit_divergence(Divergence divergence, double alpha, double beta, const Body& body) {
  switch (divergence) {
    case Divergence::kNone:
      return body(NoDivergence{});
    case Divergence::kOffSupport:
      return body(OffSupport{});
    case Divergence::kForwardKL:
      return body(ForwardKL{});
    case Divergence::kReverseKL:
      return body(ReverseKL{});
    case Divergence::kJeffreys:
      return body(Jeffreys{});
    case Divergence::kJSD:
      return body(JSD(beta));
    case Divergence::kSkewForwardKL:
      return body(SkewForwardKL(beta));
    case Divergence::kSkewReverseKL:
      return body(SkewReverseKL(beta));
    case Divergence::kTVD:
      return body(TVD{});
    case Divergence::kHellinger:
      return body(Hellinger{});
    case Divergence::kAlpha:
      return body(Alpha(alpha));
    case Divergence::kRenyi:
      return body(Renyi(alpha));
    case Divergence::kAlphaBeta:
      return body(AlphaBeta(alpha, beta));
    case Divergence::kDecoupled:
      return body(Decoupled(beta));
    case Divergence::kLogAcceptance:
      return body(LogAcceptance{});
    case Divergence::kKLTVD:
      return body(KLTVD(beta));
  }
}

}  // namespace FASTKD_ISA
}  // namespace fastkd
