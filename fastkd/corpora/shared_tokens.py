"""Classes of tokens in which the distributions of two vocabularies can be compared.

:func:`same_tokens` has a class for each token that both vocabularies have, and none for the others.

:func:`shared_tokens` has a class for the others too. A token that only one of them has belongs to the
class of the token with which the other side would begin the same bytes: if the teacher alone has ``ing`` and
the student would write ``in`` + ``g``, the teacher's probability of ``ing`` is one that the student gives to
``in``. So both sides' classes are the same events, and no probability is left over.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastkd.corpora.token_bytes import TokenBytes


@dataclass(frozen=True)
class SharedTokens:
    """The classes of two vocabularies.

    Attributes:
        student, teacher: the class of each token; -1 for a token without one. To ``same_tokens`` that is any
            token of one side alone, to ``shared_tokens`` one that the other side cannot begin to write
            either, such as a special token.
        count: number of classes, each of which has tokens on both sides.
        shared: number of tokens of the student that the teacher has too.
    """

    student: list[int]
    teacher: list[int]
    count: int
    shared: int


def same_tokens(student: TokenBytes, teacher: TokenBytes) -> SharedTokens:
    """A class for each token that both vocabularies have; the tokens of one side alone have none."""
    numbers = _numbers(student, teacher)
    made = [[numbers.get(token, -1) for token in side.tokens] for side in (student, teacher)]
    return SharedTokens(made[0], made[1], len(numbers), sum(number >= 0 for number in made[0]))


def shared_tokens(student: TokenBytes, teacher: TokenBytes) -> SharedTokens:
    """The classes of the tokens of two vocabularies; see the top of this file."""
    numbers = _numbers(student, teacher)
    longest = max((len(token) for token in numbers if token), default=0)

    def of(token: bytes | None, is_added: bool, own: TokenBytes, other: TokenBytes) -> int:
        sides = [other, own]
        while token not in numbers:
            if not token or is_added:
                return -1
            # A piece of the other side may be one that it alone has, and is then split by this side.
            piece = sides[0].split(token)
            if piece is None or len(piece) >= len(token) or not token.startswith(piece):
                starts = (token[:n] for n in range(min(longest, len(token) - 1), 0, -1))
                piece = next((start for start in starts if start in numbers), None)
            token = piece
            sides.reverse()
        return numbers[token]

    made = [
        [of(token, i in own.added, own, other) for i, token in enumerate(own.tokens)]
        for own, other in ((student, teacher), (teacher, student))
    ]
    return SharedTokens(made[0], made[1], len(numbers), sum(token in numbers for token in student.tokens))


def _numbers(student: TokenBytes, teacher: TokenBytes) -> dict[bytes | None, int]:
    """A number for each of the tokens that both vocabularies have."""
    both = {*student.tokens} & {*teacher.tokens}
    return {token: i for i, token in enumerate(sorted(both, key=lambda token: token or b""))}
