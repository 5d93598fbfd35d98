// All divergences, each as X(its name, its functor, the functor's arguments in terms of alpha and beta).
// This list generates the enum (params.h), the bindings, the dispatch (visit.h) and the CUDA kernels
// (csrc/cuda/loss/instance.cu). visit.h has to include the functor.
#pragma once

#define FASTKD_DIVERGENCES(X)               \
  X(none, NoDivergence, ())                 \
  X(off_support, OffSupport, ())            \
  X(forward_kl, ForwardKL, ())              \
  X(reverse_kl, ReverseKL, ())              \
  X(jeffreys, Jeffreys, ())                 \
  X(jsd, JSD, (beta))                       \
  X(skew_forward_kl, SkewForwardKL, (beta)) \
  X(skew_reverse_kl, SkewReverseKL, (beta)) \
  X(tvd, TVD, ())                           \
  X(triangular, Triangular, ())             \
  X(hellinger, Hellinger, ())               \
  X(pearson_chi2, PearsonChi2, ())          \
  X(alpha, Alpha, (alpha))                  \
  X(renyi, Renyi, (alpha))                  \
  X(alpha_beta, AlphaBeta, (alpha, beta))   \
  X(decoupled, Decoupled, (beta))           \
  X(log_acceptance, LogAcceptance, ())      \
  X(kl_tvd, KLTVD, (beta))
