"""The terms of a call's loss, which select a compiled variant of the kernel."""

from __future__ import annotations

from dataclasses import dataclass

from fastkd.backends.kernels import Phase


@dataclass(frozen=True)
class Terms:
    """A compile-time constant of the kernel, which Triton's cache identifies by its ``repr``.

    Attributes:
        phase: the phase of this launch.
        sharded: whether a label outside the vocabulary belongs to another shard.
        labels: whether the call has labels.
        metrics: whether the call has metrics.
        cross_entropy: whether cross-entropy is part of the loss; then the call has labels.
        smoothing: whether cross-entropy, in the loss or in the metrics, has label smoothing.
        z_loss: whether the z-loss is part of the loss.
        sparse: whether the teacher is sparse.
        power: ``T`` if it is 1 or 2 (then exp(s) is exp(s / T)**T), else 0.
    """

    phase: Phase
    sharded: bool
    labels: bool
    metrics: bool
    cross_entropy: bool
    smoothing: bool
    z_loss: bool
    power: int
    sparse: bool = False

    @property
    def nll(self) -> bool:
        """Whether the label's negative log-likelihood is computed."""
        return self.cross_entropy or (self.metrics and self.labels)

    @property
    def ce_softmax(self) -> bool:
        """Whether the normaliser at temperature 1 is computed."""
        return self.nll or self.z_loss

    @property
    def maxima(self) -> bool:
        """Whether the exact row maxima are needed."""
        return self.metrics or self.sparse or self.phase == "statistics"

    @property
    def finishes(self) -> bool:
        """Whether the launch writes the loss and the gradients."""
        return self.phase in ("all", "finish")


# The terms of a divergence alone.
CLASS_TERMS = Terms(
    phase="all",
    sharded=False,
    labels=False,
    metrics=False,
    cross_entropy=False,
    smoothing=False,
    z_loss=False,
    power=1,
)
