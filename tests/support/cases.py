"""The divergences and parameters that tests run over."""

from __future__ import annotations

from fastkd.divergences import DIVERGENCES

# Divergences and tails of sparse teachers.
SPARSE_CASES = [
    *(
        (divergence, tail)
        for tail in ("renormalize", "bucket")
        for divergence in DIVERGENCES
        if not DIVERGENCES[divergence].splits_label
    ),
    ("forward_kl", "drop"),
]
