"""An adapter: how a loss is called, and what it claims to compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from fastkd.conformance.oracle import Sparse
from fastkd.divergences import DIVERGENCES

# Fields of a call that not every loss has an argument for.
OPTIONS = (
    "labels", "temperature", "kd_ratio", "parameters", "num_items", "token_weights", "vocab_size",
)  # fmt: skip
# The denominators that a loss may divide its sum over tokens by.
DENOMINATORS = {
    "valid tokens": "mean over the tokens that are not ignored",
    "tokens": "mean over all tokens",
    "sequences": "sum over the tokens, divided by the first dimension",
    "valid elements": "mean over tokens that are not ignored, and over the vocabulary",
    "elements": "mean over tokens and vocabulary",
    "sum": "sum over the tokens",
    "none": "one loss per token",
}
TAILS = ("renormalize", "bucket", "drop")
# Whether the divergence is multiplied by T^2.
T_SQUARED = {
    "always": "times T^2",
    "never": "without the factor T^2",
    "mixed": "times T^2 if cross-entropy is mixed in, otherwise without it",
}


@dataclass(frozen=True)
class Call:
    """One call that a case makes: tensors and options.

    Args:
        student: logits ``(batch, length, V)``.
        teacher: logits ``(batch, length, V)``, or the K entries that a top-K teacher names.
        labels: int64 ``(batch, length)``, aligned with the logits; -100 marks a token to be ignored.
        divergence: a name of :data:`fastkd.divergences.DIVERGENCES`.
        alpha, beta: its parameters.
        temperature: divides the logits of both sides.
        kd_ratio: share of the divergence; the rest is cross-entropy with the labels at temperature 1.
        reduction: one of the adapter's names.
        num_items: number that the sum is divided by, in place of the number of tokens in this call.
        token_weights: float ``(batch, length)``, or None for weights of 1.
        vocab_size: columns at or past it do not exist, on both sides.
    """

    student: Tensor
    teacher: Tensor | Sparse
    labels: Tensor | None = None
    divergence: str = "forward_kl"
    alpha: float = 0.5
    beta: float = 0.5
    temperature: float = 1.0
    kd_ratio: float = 1.0
    reduction: str = ""
    num_items: int | None = None
    token_weights: Tensor | None = None
    vocab_size: int | None = None

    @property
    def flat(self) -> Call:
        """The call with batch and length as one dimension, for a loss that takes ``(tokens, V)``."""
        teacher = self.teacher
        if isinstance(teacher, Sparse):
            teacher = Sparse(teacher.indices.flatten(0, -2), teacher.logprobs.flatten(0, -2), teacher.tail)
        else:
            teacher = teacher.flatten(0, -2)
        return replace(
            self,
            student=self.student.flatten(0, -2),
            teacher=teacher,
            labels=None if self.labels is None else self.labels.flatten(),
            token_weights=None if self.token_weights is None else self.token_weights.flatten(),
        )

    @property
    def teacher_logits(self) -> Tensor:
        """The teacher's logits, for a loss that takes no top-K teacher."""
        if not isinstance(self.teacher, Tensor):
            raise TypeError("a top-K teacher has no logits")
        return self.teacher


@dataclass(frozen=True)
class Adapter:
    """A loss, how to call it, and its definition, by which alone it is judged.

    Args:
        name: heading of its column.
        loss: makes a call and returns the loss.
        function: what is called, for the reader of the table.
        packages: distributions whose versions the table states.
        divergences: names of :data:`fastkd.divergences.DIVERGENCES` that it computes.
        reductions: the loss's own names of its reductions, each with one of :data:`DENOMINATORS`. Most cases
            use the first one.
        takes: which of :data:`OPTIONS` it has arguments for. A case that needs another is one that the
            loss cannot express.
        tails: which of :data:`TAILS` it has, if it takes top-K teachers.
        t_squared: one of :data:`T_SQUARED`.
        teacher_entropy: whether the teacher's entropy is added: the cross-entropy between both
            distributions in place of the KL divergence.
        teacher_gradient: whether a teacher that requires grad gets a gradient; otherwise it must get none.
        in_float32: whether it has no more digits than float32, even if the inputs are float64.
        from_hidden: sides (``"student"``, ``"teacher"``) of which the loss takes hidden states and a head
            instead of logits. The adapter then passes the logits as hidden states in front of an identity
            matrix, which rules out infinities.
        on_cpu: why the loss cannot run on a CPU, or None if it can.
        notes: what else a reader should know, in whole sentences.

    Raises:
        ValueError: an unknown name.
    """

    name: str
    loss: Callable[[Call], Tensor]
    function: str
    packages: tuple[str, ...] = ()
    divergences: tuple[str, ...] = ("forward_kl",)
    reductions: Mapping[str, str] = field(default_factory=lambda: {"mean": "valid tokens"})
    takes: tuple[str, ...] = ()
    tails: tuple[str, ...] = ()
    t_squared: str = "always"
    teacher_entropy: bool = False
    teacher_gradient: bool = False
    in_float32: bool = False
    from_hidden: tuple[str, ...] = ()
    on_cpu: str | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
            "divergences": (self.divergences, tuple(DIVERGENCES)),
            "reductions": (tuple(self.reductions.values()), tuple(DENOMINATORS)),
            "takes": (self.takes, OPTIONS),
            "tails": (self.tails, TAILS),
            "from_hidden": (self.from_hidden, ("student", "teacher")),
            "t_squared": ((self.t_squared,), tuple(T_SQUARED)),
        }
        for name, (given, valid) in known.items():
            if unknown := [x for x in given if x not in valid]:
                raise ValueError(
                    f"{name} of {self.name!r} has {unknown[0]!r}: choose from {', '.join(valid)}"
                )
            if not given and name in ("divergences", "reductions"):
                raise ValueError(f"{name} of {self.name!r} is empty")

    @property
    def reduction(self) -> str:
        """The name of the reduction that most cases use."""
        return next(iter(self.reductions))

    def named(self, denominator: str) -> str | None:
        """The loss's own name for a reduction with this denominator, or None."""
        return next((name for name, found in self.reductions.items() if found == denominator), None)
