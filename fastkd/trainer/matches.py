"""The entries of ``feature_matches``, as plain data: which layers a run compares, and how.

Configurations import this module, so it imports nothing of fastkd and no torch.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

# The losses of each kind, the default first.
LOSSES = {"hidden": ("mse", "cosine"), "attention": ("mse", "kl"), "relation": ("mse", "kl")}

# The weight where none is given. In the encoder of a BERT from scratch, on real texts, two matches with this
# weight had a gradient of 0.25 to 1.2 times that of the loss on the logits at the start. The losses have the
# same unit, but a relation or a state reaches the encoder directly, and the logits through a head that is
# still small.
WEIGHTS = {
    "hidden": {"mse": 0.01, "cosine": 0.1},
    "attention": {"mse": 0.1, "kl": 0.1},
    "relation": {"mse": 0.01, "kl": 0.001},
}


@dataclass(frozen=True)
class FeatureMatch:
    """One entry of ``feature_matches``.

    Attributes:
        student, teacher: numbers of layers. For hidden states, 0 is the embeddings and k the output of the
            k-th layer; for attention maps, k is the map of the k-th layer. Negative numbers count from the
            last layer.
        kind: ``hidden`` (FitNets, Romero et al. 2015; patient KD, Sun et al. 2019), ``attention`` (TinyBERT,
            Jiao et al. 2020) or ``relation`` (relational KD, Park et al. 2019; MiniLM, Wang et al. 2020).
        loss: one of :data:`LOSSES`.
        weight: factor of this loss in the sum of all losses; :func:`parse_matches` takes that of
            :data:`WEIGHTS` where none is given. No loss has a unit, so that a weight means the same for all
            layers and models.
    """

    student: int
    teacher: int
    kind: str = "hidden"
    loss: str = "mse"
    weight: float = WEIGHTS["hidden"]["mse"]

    @property
    def layer(self) -> str:
        """The field of a :class:`~fastkd.trainer.models.ModelOutput` that this match compares."""
        return "attentions" if self.kind == "attention" else "hidden_states"


def parse_matches(given: Sequence[Any]) -> list[FeatureMatch]:
    """``DistillationConfig.feature_matches``, checked.

    Raises:
        ValueError: anything but mappings with the fields of :class:`FeatureMatch`.
    """
    if not isinstance(given, (list, tuple)):
        raise ValueError(f"feature_matches must be a list of mappings, not {given!r}")
    known = [field.name for field in fields(FeatureMatch)]
    found = []
    for i, entry in enumerate(given):
        name = f"feature_matches[{i}]"
        if not isinstance(entry, dict):
            raise ValueError(f"{name} must be a mapping such as {{student: 1, teacher: 2}}, not {entry!r}")
        for key in entry:
            if key not in known:
                raise ValueError(f"{name}: unknown field {key!r}; did you mean {_nearest(key, known)!r}?")
        for side in ("student", "teacher"):
            if type(entry.get(side)) is not int:
                what = "is missing" if side not in entry else f"must be a whole number, not {entry[side]!r}"
                raise ValueError(f"{name}: the {side}'s layer {what}")
        kind = entry.get("kind", "hidden")
        if kind not in LOSSES:
            raise ValueError(f"{name}: unknown kind {kind!r}; did you mean {_nearest(kind, LOSSES)!r}?")
        loss = entry.get("loss", LOSSES[kind][0])
        if loss not in LOSSES[kind]:
            near = _nearest(loss, LOSSES[kind])
            choices = " or ".join(LOSSES[kind])
            raise ValueError(
                f"{name}: kind {kind} takes the loss {choices}, not {loss!r}; did you mean {near!r}?"
            )
        weight = entry.get("weight", WEIGHTS[kind][loss])
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
            raise ValueError(f"{name}: weight must be a positive number, not {weight!r}")
        found.append(FeatureMatch(entry["student"], entry["teacher"], kind, loss, float(weight)))
    return found


def _nearest(name: Any, known: Iterable[str]) -> str:
    return difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.0)[0]
