"""Aligns one text as two tokenizers split it: spans of tokens that begin and end at the same bytes.

A span is the smallest piece that both sides can be cut into, so it is one token on each side where the
tokenizers agree, and several on one side or both where they do not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastkd.corpora.labels import IGNORE_INDEX
from fastkd.corpora.token_bytes import common_bytes, comparable, token_bytes

# Keys of an encoded row: the teacher's tokens and labels of the same text, and for each label of either side
# the number of its span in the row, or IGNORE_INDEX.
TEACHER_IDS, TEACHER_LABELS = "teacher_input_ids", "teacher_labels"
SPANS, TEACHER_SPANS = "spans", "teacher_spans"
ALIGNED = (TEACHER_IDS, TEACHER_LABELS, SPANS, TEACHER_SPANS)
# Keys of a batch: the largest number of spans in a row, at least 1, and the numbers in all rows of the spans
# that are one token on both sides and of the others.
COUNT, SINGLE, SPLIT = "span_count", "single_spans", "split_spans"

# Bytes at the beginning of one side that the other may lack, and bytes that must agree after them.
_LOST, _SEEN = 64, 16

Row = dict[str, Any]
Token = bytes | None


@dataclass(frozen=True)
class Span:
    """Tokens ``start`` to ``end`` of the student's, and ``teacher_start`` to ``teacher_end`` of the
    teacher's, which stand for the same bytes.
    """

    start: int
    end: int
    teacher_start: int
    teacher_end: int

    def moved(self, by: int, teacher_by: int) -> Span:
        """The span where the tokens have others before them."""
        return Span(
            self.start + by, self.end + by, self.teacher_start + teacher_by, self.teacher_end + teacher_by
        )


def aligned(student: Sequence[Token], teacher: Sequence[Token]) -> list[Span]:
    """The spans of a text.

    The alignment ends where the texts differ: where one side was cut off, or has changed the text (lower
    case, say). At the beginning, one side may lack some bytes, such as those of a prompt that share the first
    token of an answer; the spans then begin at the first boundary that both sides have. A space at the very
    beginning, which some tokenizers add, does not count.

    Args:
        student, teacher: the bytes of each token; None for the end of a text, which aligns with None.
    """
    found: list[Span] = []
    start = teacher_start = 0
    while True:
        mine, ended = _until_end(student[start:])
        theirs, teacher_ended = _until_end(teacher[teacher_start:])
        part, whole = _of_one_text(mine, theirs)
        found += [span.moved(start, teacher_start) for span in part]
        if not (whole and ended and teacher_ended):
            return found
        start, teacher_start = start + len(mine) + 1, teacher_start + len(theirs) + 1
        found.append(Span(start - 1, start, teacher_start - 1, teacher_start))


def kinds(spans: Sequence[int], teacher_spans: Sequence[int]) -> tuple[int, int]:
    """How many spans of a row are one token on both sides, and how many are not.

    Args:
        spans, teacher_spans: the number of each label's span, or IGNORE_INDEX.
    """
    sizes, theirs = (
        Counter(number for number in side if number != IGNORE_INDEX) for side in (spans, teacher_spans)
    )
    single = sum(size == theirs[number] == 1 for number, size in sizes.items())
    return single, len(sizes) - single


def _of_one_text(mine: list[bytes], theirs: list[bytes]) -> tuple[list[Span], bool]:
    """The spans of a text without its end, and whether they reach it on both sides."""
    one, other = b"".join(mine), b"".join(theirs)
    lost, teacher_lost = _lost(one, other)
    same = common_bytes(one[lost:], other[teacher_lost:])
    ends, teacher_ends = _ends(mine, lost), _ends(theirs, teacher_lost)
    found = []
    begin: tuple[int | None, int | None]
    begin = _beginning(lost, ends, one), _beginning(teacher_lost, teacher_ends, other)
    for place in sorted(place for place in ends.keys() & teacher_ends.keys() if 0 < place <= same):
        here = ends[place], teacher_ends[place]
        if begin[0] is not None and begin[1] is not None:
            found.append(Span(begin[0], here[0], begin[1], here[1]))
        begin = here
    return found, same == len(one) - lost == len(other) - teacher_lost


def _until_end(tokens: Sequence[Token]) -> tuple[list[bytes], bool]:
    """The tokens before the end of the text, and whether it has one."""
    made: list[bytes] = []
    for token in tokens:
        if token is None:
            return made, True
        made.append(token)
    return made, False


def _ends(tokens: Sequence[bytes], lost: int) -> dict[int, int]:
    """For each place in the text where a token ends, the number of tokens up to there."""
    found, place = {}, -lost
    for number, token in enumerate(tokens, 1):
        place += len(token)
        found[place] = number
    return found


def _beginning(lost: int, ends: dict[int, int], text: bytes) -> int | None:
    """The number of the token that begins after the bytes that were left out; None if none begins there."""
    return 0 if not text[:lost].strip(b" ") else ends.get(0)


def _lost(one: bytes, other: bytes) -> tuple[int, int]:
    """The numbers of bytes to leave out at the beginning of each side, so that both go on alike."""
    for lost in range(_LOST + 1):
        for left, right in ((lost, 0), (0, lost)):
            rest, wanted = one[left:], other[right:]
            if rest and (rest == wanted or (len(wanted) >= _SEEN and rest[:_SEEN] == wanted[:_SEEN])):
                return left, right
    # The texts differ soon after their beginning, where one may still have a space before it.
    space = one[:1] == b" ", other[:1] == b" "
    return (int(space[0]), int(space[1])) if space[0] != space[1] else (0, 0)


class Aligner:
    """Puts the teacher's tokens of a row beside the student's.

    Args:
        student, teacher: their tokenizers.
        shifts_labels: whether a row's first label has no position that predicts it.

    Attributes:
        plain: the student's vocabulary.
        student, teacher: both vocabularies in the form in which they are compared.
    """

    def __init__(self, student: Any, teacher: Any, shifts_labels: bool) -> None:
        self.plain = token_bytes(student)
        self.student, self.teacher = comparable(self.plain, token_bytes(teacher))
        self.shifts_labels = shifts_labels

    def pair(self, own: Row, other: Row, ends: frozenset[int] | None = None) -> Row:
        """The columns :data:`ALIGNED` of one text.

        Each stretch of labels (an answer of a conversation) is aligned with the teacher's stretch of the same
        number.

        Args:
            own, other: the row as the student's and as the teacher's tokenizer encode it.
            ends: the student's tokens that end a text, if they are other ones than its tokenizer's.
        """
        mine, theirs = ([IGNORE_INDEX] * len(row["labels"]) for row in (own, other))
        number = 0
        for here, there in zip(self._stretches(own), self._stretches(other), strict=False):
            first, second = own["labels"][here], other["labels"][there]
            for span in aligned(self.student.of(first, ends), self.teacher.of(second)):
                for spans, start, length in (
                    (mine, here.start + span.start, span.end - span.start),
                    (theirs, there.start + span.teacher_start, span.teacher_end - span.teacher_start),
                ):
                    spans[start : start + length] = [number] * length
                number += 1
        return {
            TEACHER_IDS: list(other["input_ids"]),
            TEACHER_LABELS: list(other["labels"]),
            SPANS: mine,
            TEACHER_SPANS: theirs,
        }

    def unpaired(self, own: Row) -> Row:
        """The columns :data:`ALIGNED` of a row that the teacher's side lacks: none of its tokens align."""
        masked = [IGNORE_INDEX] * len(own["labels"])
        return {
            TEACHER_IDS: [0],
            TEACHER_LABELS: [IGNORE_INDEX],
            SPANS: masked,
            TEACHER_SPANS: [IGNORE_INDEX],
        }

    def beside(self, own: Sequence[Row], other: Sequence[Row]) -> list[Row]:
        """The encoded rows of one raw row, with the teacher's columns.

        Where a chat template splits a conversation into another number of rows, nothing says which of them
        belong together, so none is aligned.
        """
        if len(own) != len(other):
            return [{**row, **self.unpaired(row)} for row in own]
        return [{**row, **self.pair(row, theirs)} for row, theirs in zip(own, other, strict=True)]

    def _stretches(self, row: Row) -> Iterator[slice]:
        """The stretches of labels that are predicted."""
        labels = row["labels"]
        start = None
        for i in range(int(self.shifts_labels), len(labels) + 1):
            is_label = i < len(labels) and labels[i] != IGNORE_INDEX
            if is_label and start is None:
                start = i
            elif not is_label and start is not None:
                yield slice(start, i)
                start = None
