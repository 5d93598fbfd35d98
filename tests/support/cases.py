"""The divergences and parameters that tests run over. A new divergence is in them without an edit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastkd.divergences import DIVERGENCES

# Parameters that the suite tries besides the defaults.
OTHERS: dict[str, tuple[dict[str, float], ...]] = {
    "jsd": ({"beta": 0.1}, {"beta": 0.9}, {"beta": 0.0}, {"beta": 1.0}),
    "skew_forward_kl": ({"beta": 0.5}, {"beta": 0.0}),
    "skew_reverse_kl": ({"beta": 0.5}, {"beta": 0.0}),
    "alpha": ({"alpha": -0.5}, {"alpha": 0.3}, {"alpha": 2.0}),
    "renyi": ({"alpha": 2.0},),
    "alpha_beta": ({"alpha": 0.2, "beta": 0.7}, {"alpha": -0.5, "beta": 2.0}),
    "decoupled": ({"beta": 8.0},),
    "kl_tvd": ({"beta": 0.0}, {"beta": 10.0}),
}
CASES: list[tuple[str, dict[str, float]]] = [
    (name, parameters) for name in DIVERGENCES for parameters in ({}, *OTHERS.get(name, ()))
]
# Parameters with a path of their own: a limit that is another divergence, powers above 1 and below 0.
QUICK = ("jsd", {"beta": 1.0}), ("alpha", {"alpha": 2.0}), ("alpha_beta", {"alpha": -0.5, "beta": 2.0})


def _marked() -> Iterator[object]:
    """The cases, of which those with other numbers on the path of the defaults are slow."""
    for name, parameters in CASES:
        slow = parameters and (name, parameters) not in QUICK
        marks = pytest.mark.slow if slow else ()
        yield pytest.param(name, parameters, marks=marks, id=f"{name}-{parameters or 'default'}")


EVERY_CASE = pytest.mark.parametrize(("divergence", "parameters"), list(_marked()))

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
