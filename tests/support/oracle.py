"""The oracle of the suite is that of the conformance kit, which users can import as well."""

from fastkd.conformance.oracle import (
    INF,
    Sparse,
    divergence,
    kd_loss,
    metrics,
    over_vocabulary,
    reference_gradients,
    sparse_divergence,
    token_losses,
)

__all__ = [
    "INF",
    "Sparse",
    "divergence",
    "kd_loss",
    "metrics",
    "over_vocabulary",
    "reference_gradients",
    "sparse_divergence",
    "token_losses",
]
