"""Losses between the insides of both models: hidden states, attention, relations, saliency."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastkd.trainer.views import Batch, View, Wanted


class Matching(nn.Module):
    """The matches of a configuration. Its parameters are the projections that bridge different widths.

    Args:
        student, teacher: the two models.
        matches: of ``DistillationConfig.feature_matches``.
        gradient_weight: of ``DistillationConfig.gradient_match_weight``.
    """

    def __init__(
        self, student: Any, teacher: Any, matches: list[dict[str, Any]], gradient_weight: float
    ) -> None:
        super().__init__()
        raise ValueError("feature_matches and gradient_match_weight are not available yet")

    @property
    def wanted(self) -> Wanted:
        """Which insides must be kept in a forward."""
        return Wanted()

    def prepare(self, teacher: View, targets: Tensor) -> View:
        """What is wanted of the teacher's graph, taken and the graph let go, before the student runs."""
        return teacher

    def forward(self, student: View, teacher: View, targets: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Each match's loss times its weight, by name: sums over the valid targets."""
        return {}
