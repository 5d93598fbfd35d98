"""Names the matches whose weight drowns the loss on the logits, which is what the run is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastkd.trainer.matches import LOSSES, FeatureMatch

# A match drowns the loss on the logits if it is more than this many times as large.
DROWNING = 10.0


@dataclass(frozen=True)
class Drowning:
    """A kind of match that is many times as large as the loss on the logits.

    Attributes:
        found: a sentence with both losses.
        remedy: the same setting with weights that make both losses equal.
    """

    found: str
    remedy: str


def drowning(
    means: Mapping[str, float], matches: Sequence[FeatureMatch], gradient_weight: float
) -> list[Drowning]:
    """The kinds of match that drown the loss on the logits.

    Args:
        means: means over the targets: ``loss``, which is the loss on the logits, and the weighted losses by
            the names of :meth:`Matching.forward`.
        matches: the parsed ``feature_matches``.
        gradient_weight: ``gradient_match_weight``.
    """
    settings = {
        f"feature_{kind}": (f"feature_matches of kind {kind}, weight", chosen)
        for kind in LOSSES
        if (chosen := [match.weight for match in matches if match.kind == kind])
    }
    settings["saliency"] = ("gradient_match_weight", [gradient_weight])
    logits = means["loss"]
    found = []
    for name, (setting, weights) in settings.items():
        value = means.get(name, 0.0)
        if logits > 0 and value > DROWNING * logits:
            now, then = _listed(weights), _listed([weight * logits / value for weight in weights])
            found.append(
                Drowning(
                    f"{setting} {now}: this loss is {value:.3g}, {value / logits:,.0f} times the loss on the "
                    f"logits ({logits:.3g}), so the student hardly learns its task",
                    f"{setting} {then} makes both equal at the start",
                )
            )
    return found


def _listed(weights: Sequence[float]) -> str:
    """The different weights, with the digits that matter."""
    return ", ".join(dict.fromkeys(f"{weight:.2g}" for weight in weights))
