"""Test the alignment of two tokenizers' tokens, and the classes of tokens that begin alike."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from support.vocabularies import KINDS, TEXT, ids, tokenizer

from fastkd.corpora.shared_tokens import shared_tokens
from fastkd.corpora.spans import SPANS, TEACHER_IDS, TEACHER_SPANS, Aligner, Span, aligned
from fastkd.corpora.token_bytes import comparable, token_bytes

HOSTILE = [
    "the cat sat on the mat",
    "",
    " ",
    "  two  spaces ",
    "line\r\nbreaks\r\n\r\n",
    "tabs\tand\x00zeros",
    "naïve café 日本語",
    "😀👩‍👩‍👧 emoji",
    "e\u0301 and é",
    "<|x|> &amp; </b>",
    "x" * 300,
]
LOSSLESS = ("bytes_300", "bytes_400", "metaspace", "byt5")


def sides(one: str, other: str) -> tuple[Any, Any]:
    return comparable(token_bytes(tokenizer(one)), token_bytes(tokenizer(other)))


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("text", [*HOSTILE[:9], *TEXT[:5]])
def test_the_bytes_of_tokens_are_those_of_the_text(kind: str, text: str) -> None:
    made = token_bytes(tokenizer(kind))
    found = made.of(ids(kind, text))
    assert found[-1] is None and None not in found[:-1]
    whole = b"".join(token for token in found if token is not None)
    if kind == "metaspace":  # it puts a space before every text that has none
        whole, text = whole.removeprefix(b" "), text.removeprefix(" ")
    assert whole == text.encode()


def test_a_tokenizer_without_spaces_is_compared_without_them() -> None:
    made = token_bytes(tokenizer("wordpiece"))
    assert not made.spaces
    assert b"".join(made.of(ids("wordpiece", "the cat, sat"))[:-1]) == b"thecat,sat"  # type: ignore[arg-type]
    one, other = sides("wordpiece", "bytes_400")
    text = "the cat sat on a mat"
    spans = aligned(one.of(ids("wordpiece", text)), other.of(ids("bytes_400", text)))
    assert spans[-1].end == len(ids("wordpiece", text)) and spans[-1].teacher_end == len(
        ids("bytes_400", text)
    )
    upper = "the Cat sat"  # one side writes it in small letters
    spans = aligned(one.of(ids("wordpiece", upper)), other.of(ids("bytes_400", upper)))
    assert 1 <= spans[-1].teacher_end < len(ids("bytes_400", upper))


@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(LOSSLESS, 2)))
@pytest.mark.parametrize("text", HOSTILE)
def test_whole_texts_align(one: str, other: str, text: str) -> None:
    first, second = (
        side.of(ids(kind, text)) for side, kind in zip(sides(one, other), (one, other), strict=True)
    )
    spans = aligned(first, second)
    if text == " ":  # the space that a tokenizer adds is one that does not count
        return
    # The spans cover both sides, in order and without gaps, and stand for the same bytes.
    start = teacher_start = 0
    for span in spans:
        assert (span.start, span.teacher_start) == (start, teacher_start)
        start, teacher_start = span.end, span.teacher_end
        own, theirs = first[span.start : span.end], second[span.teacher_start : span.teacher_end]
        if None in own:
            assert own == theirs == [None]
            continue
        said = [b"".join(part).removeprefix(b" " if not span.start else b"") for part in (own, theirs)]
        assert said[0] == said[1]
    assert (start, teacher_start) == (len(first), len(second))


def test_spans_are_the_smallest() -> None:
    assert aligned([b"ab", b"c", b"d"], [b"a", b"bc", b"d"]) == [Span(0, 2, 0, 2), Span(2, 3, 2, 3)]
    assert aligned([b"a", b"b", None], [b"ab", None]) == [Span(0, 2, 0, 1), Span(2, 3, 1, 2)]
    assert aligned([None], [None]) == [Span(0, 1, 0, 1)]
    assert aligned([], [None]) == aligned([b"a"], []) == []
    # Texts that are joined go on after an end, while both sides are whole.
    found = aligned([b"a", None, b"b", b"c", None], [b"a", None, b"bc", None])
    assert found[2:] == [Span(2, 4, 2, 3), Span(4, 5, 3, 4)]
    # An empty token belongs to the span before it.
    assert aligned([b"a", b"", b"b"], [b"a", b"b"]) == [Span(0, 2, 0, 1), Span(2, 3, 1, 2)]


def test_a_cut_ends_the_alignment() -> None:
    whole = [b"the", b" cat", b" sat", b" on", b" the", b" mat", None]
    cut = [b"th", b"e", b" ca", b"t s"]
    assert aligned(whole, cut) == [Span(0, 1, 0, 2)]
    assert aligned(whole[:4], [*whole[:2], b" sat on"]) == [
        Span(0, 1, 0, 1),
        Span(1, 2, 1, 2),
        Span(2, 4, 2, 3),
    ]
    # A text that is cut has no end, and one that goes on otherwise does not end there either.
    assert aligned([b"ab", None], [b"ab", b"c", None]) == [Span(0, 1, 0, 1)]


def test_a_difference_ends_the_alignment() -> None:
    assert aligned([b"the", b" cat", b" sat"], [b"the", b" Cat", b" sat"]) == [Span(0, 1, 0, 1)]
    assert aligned([b" def", b" x"], [b"def", b" y"]) == [Span(0, 1, 0, 1)]


def test_a_beginning_that_one_side_lacks() -> None:
    text = b"the cat sat on the mat"
    # The answer's first token has bytes of the prompt in it.
    found = aligned([b": t", b"he cat", b" sat on the mat"], [b"the", b" cat", b" sat on the mat"])
    assert found == [Span(2, 3, 2, 3)]
    # The first token of the row has no position that predicts it, and is missing on one side.
    found = aligned([b"the ", b"cat sat on", b" the mat"], [b"cat sat", b" on the mat"])
    assert found == [Span(1, 3, 0, 2)]
    assert aligned([b"<s>", text], [text]) == [Span(1, 2, 0, 1)]


def test_random_cuts_of_a_random_text_align() -> None:
    draw = random.Random(0)
    for _ in range(300):
        text = bytes(draw.choices(b"ab \xf0", k=draw.randint(1, 30)))
        cuts = [sorted({0, len(text), *draw.choices(range(len(text) + 1), k=6)}) for _ in range(2)]
        one, other = ([text[a:b] for a, b in itertools.pairwise(cut)] for cut in cuts)
        places = [place for place in cuts[0] if place in cuts[1]]
        assert [b"".join(one[s.start : s.end]) for s in aligned(one, other)] == [
            text[a:b] for a, b in itertools.pairwise(places)
        ]


def row(kind: str, prompt: str, answers: list[str]) -> dict[str, Any]:
    """A conversation, in which the answers are labels."""
    tokens, labels = [], []
    for answer in answers:
        asked = tokenizer(kind)(prompt, add_special_tokens=False)["input_ids"]
        tokens += [*asked, *ids(kind, answer)]
        labels += [*[-100] * len(asked), *ids(kind, answer)]
    return {"input_ids": tokens, "labels": labels}


def test_each_answer_of_a_conversation_is_aligned_with_its_own() -> None:
    aligner = Aligner(tokenizer("bytes_300"), tokenizer("bytes_400"), True)
    own, other = (
        row("bytes_300", "Q: why?", ["the cat", "the mat"]),
        row("bytes_400", "#", ["the cat", "the mat"]),
    )
    made = aligner.pair(own, other)
    assert made[TEACHER_IDS] == other["input_ids"]
    for labels, spans in ((own["labels"], made[SPANS]), (other["labels"], made[TEACHER_SPANS])):
        assert [label == -100 for label in labels] == [span == -100 for span in spans]
        numbers = [span for span in spans if span != -100]
        assert numbers == sorted(numbers) and {*numbers} == {*range(max(numbers) + 1)}
    assert max(made[SPANS]) == max(made[TEACHER_SPANS])
    # The teacher's side lost its second answer.
    short = {name: values[: len(values) // 2] for name, values in other.items()}
    assert max(aligner.pair(own, short)[SPANS]) < max(made[SPANS])


def test_a_row_that_becomes_another_number_of_rows_is_not_aligned() -> None:
    aligner = Aligner(tokenizer("bytes_300"), tokenizer("bytes_400"), True)
    own, other = row("bytes_300", "Q", ["the cat"]), row("bytes_400", "Q", ["the cat"])
    (made,) = aligner.beside([own], [other, other])
    assert made["input_ids"] == own["input_ids"] and {*made[SPANS], *made[TEACHER_SPANS]} == {-100}
    (made,) = aligner.beside([own], [other])
    assert max(made[SPANS]) > 0


def test_the_students_own_end_of_an_answer() -> None:
    aligner = Aligner(tokenizer("bytes_300"), tokenizer("bytes_400"), False)
    own, other = ({"input_ids": [5], "labels": ids(kind, "the cat")} for kind in ("bytes_300", "bytes_400"))
    own["labels"][-1] = 299  # its generation config ends answers with another token
    known = aligner.pair(own, other, frozenset([299]))
    assert known[SPANS][-1] == known[TEACHER_SPANS][-1] >= 0
    assert aligner.pair(own, other)[TEACHER_SPANS][-1] == -100


@pytest.mark.parametrize(
    ("one", "other"), [("bytes_300", "bytes_400"), ("metaspace", "bytes_400"), ("wordpiece", "byt5")]
)
def test_classes_have_tokens_of_both_sides(one: str, other: str) -> None:
    first, second = sides(one, other)
    made = shared_tokens(first, second)
    assert {*made.student} - {-1} == {*made.teacher} - {-1} == {*range(made.count)}
    names: dict[int, set[bytes | None]] = {}
    for side, numbers in ((first, made.student), (second, made.teacher)):
        for token, number in zip(side.tokens, numbers, strict=True):
            names.setdefault(number, set()).add(token)
    names.pop(-1, None)
    shared = {*first.tokens} & {*second.tokens}
    for tokens in names.values():
        (common,) = tokens & shared  # each class has one token that both have
        assert common is None or all(token is not None and token.startswith(common) for token in tokens)
    assert made.shared == sum(token in shared for token in first.tokens)


def test_a_token_of_one_side_belongs_to_the_one_with_which_the_other_begins() -> None:
    """Where one vocabulary contains the other, every span begins with tokens of the same class."""
    first, second = sides("bytes_300", "bytes_400")
    made = shared_tokens(first, second)
    assert made.shared == len(first.tokens) and -1 not in made.student + made.teacher
    for text in TEXT[:5]:
        own, theirs = ids("bytes_300", text), ids("bytes_400", text)
        for span in aligned(first.of(own), second.of(theirs)):
            assert made.student[own[span.start]] == made.teacher[theirs[span.teacher_start]]


def test_a_special_token_of_one_side_has_no_class() -> None:
    first, second = sides("bytes_300", "byt5")
    made = shared_tokens(first, second)
    extra = tokenizer("byt5").convert_tokens_to_ids("<extra_id_3>")
    assert made.teacher[extra] == -1
    end = tokenizer("bytes_300").eos_token_id
    assert made.student[end] == made.teacher[tokenizer("byt5").eos_token_id] >= 0


def test_every_kind_is_read() -> None:
    for kind in KINDS:
        made = token_bytes(tokenizer(kind))
        assert len(made.tokens) == len(tokenizer(kind)) and len(made.ends) == 1
