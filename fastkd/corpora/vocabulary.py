"""Compares vocabularies: whether two tokenizers give the same numbers to the same tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastkd.corpora.listing import listed


@dataclass(frozen=True)
class Comparison:
    """The differences between the vocabularies of student and teacher.

    Attributes:
        common: how many token numbers both have.
        wrong: numbers that mean another token to the teacher than to the student, with both tokens.
        renamed: such numbers of special tokens that the other side knows under no number. A reserved place
            that one of the two models has given a name is harmless as long as the data does not use it.
        student_only, teacher_only: tokens whose number the other side does not have.
    """

    common: int
    wrong: list[tuple[int, str, str]]
    renamed: list[tuple[int, str, str]]
    student_only: list[str]
    teacher_only: list[str]

    @property
    def trouble(self) -> str | None:
        """The reason why no token-level distillation is possible; None if nothing forbids it."""
        if not self.wrong:
            return None
        return (
            f"{len(self.wrong):,} of {self.common:,} token numbers mean another token to the teacher than to "
            f"the student: {examples(self.wrong)}"
        )


REMEDY = (
    "set cross_tokenizer: spans, which aligns the two by bytes, distil between models of one tokenizer, or "
    "sequence-level: fastkd generate, then train_file: DIR"
)


def compare(student: Any, teacher: Any) -> Comparison:
    """Compare the student's tokenizer with the teacher's."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours == theirs:
        return Comparison(len(ours), [], [], [], [])
    mine = {number: token for token, number in ours.items()}
    other = {number: token for token, number in theirs.items()}
    both = mine.keys() & other.keys()
    reserved = _special(student) & _special(teacher)
    wrong: list[tuple[int, str, str]] = []
    renamed: list[tuple[int, str, str]] = []
    for number in sorted(both):
        a, b = mine[number], other[number]
        if a != b:
            is_renamed = number in reserved and a not in theirs and b not in ours
            (renamed if is_renamed else wrong).append((number, a, b))
    return Comparison(
        len(both),
        wrong,
        renamed,
        [mine[number] for number in sorted(mine.keys() - other.keys())],
        [other[number] for number in sorted(other.keys() - mine.keys())],
    )


def require_same_tokens(student: Any, teacher: Any) -> None:
    """Raise a ``ValueError`` if a token number means different tokens to student and teacher.

    Args:
        student, teacher: their tokenizers.
    """
    if student is teacher or not (hasattr(student, "get_vocab") and hasattr(teacher, "get_vocab")):
        return
    if (trouble := compare(student, teacher).trouble) is not None:
        raise ValueError(f"{trouble}; {REMEDY}")


def require_other_tokens(student: Any, teacher: Any) -> Any:
    """The teacher's tokenizer, for a run that compares texts because the tokens differ.

    Raises:
        ValueError: the teacher has none, or both have the same vocabulary, whose distributions are compared
            whole.
    """
    if teacher is None:
        raise ValueError(
            "cross_tokenizer needs the teacher's tokenizer, and none was saved beside the teacher: save it "
            "there"
        )
    if student is teacher or student.get_vocab() == teacher.get_vocab():
        raise ValueError(
            "cross_tokenizer is set, and student and teacher have the same vocabulary, so that their whole "
            "distributions can be compared, token by token: leave it out"
        )
    return teacher


def too_narrow(tokens: int, widths: Mapping[str, int]) -> str | None:
    """The reason why a model cannot read all tokens; None if each has a column for every token.

    Args:
        tokens: number of tokens of the tokenizer.
        widths: number of output columns of each side.
    """
    for side, width in widths.items():
        if width < tokens:
            return f"the tokenizer has {tokens:,} tokens and the {side} {width:,} columns"
    return None


def examples(numbers: list[tuple[int, str, str]]) -> str:
    """The first numbers, with the student's token and the teacher's."""
    return listed([f"{number} is {a!r} and {b!r}" for number, a, b in numbers])


def _special(tokenizer: Any) -> set[int]:
    """The numbers of special tokens and of those that were added to the vocabulary."""
    return {int(number) for number in getattr(tokenizer, "added_tokens_decoder", {})}
