"""Test the comparison of two vocabularies."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fastkd.corpora.vocabulary import compare, require_same_tokens, too_narrow

WORDS = ["<pad>", "</s>", "<r1>", "a", "b", "c"]


def tokenizer(words: list[str], special: int = 3) -> Any:
    """A tokenizer's vocabulary, of which the first ``special`` tokens are special ones."""
    return SimpleNamespace(
        get_vocab=lambda: {word: i for i, word in enumerate(words)},
        added_tokens_decoder={i: words[i] for i in range(special)},
    )


def test_equal_vocabularies() -> None:
    found = compare(tokenizer(WORDS), tokenizer(WORDS))
    assert found.trouble is None and not found.renamed and found.common == 6
    require_same_tokens(tokenizer(WORDS), tokenizer(WORDS))


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (["<pad>", "</s>", "<r1>", "b", "a", "c"], "2 of 6 .*: 3 is 'a' and 'b'"),  # ordinary tokens swapped
        (["</s>", "<pad>", "<r1>", "a", "b", "c"], "2 of 6 .*: 0 is '<pad>' and '</s>'"),  # special ones too
        (["<pad>", "</s>", "<r1>", "a", "b", "d"], "1 of 6 .*: 5 is 'c' and 'd'"),  # another word
        (["<pad>", "</s>", "a", "b", "c", "<r1>"], "4 of 6"),  # shifted by one
    ],
)
def test_numbers_with_another_meaning_are_refused(words: list[str], first: str) -> None:
    with pytest.raises(ValueError, match=f"{first}.*fastkd generate"):
        require_same_tokens(tokenizer(WORDS), tokenizer(words))


def test_a_reserved_place_may_have_another_name() -> None:
    found = compare(tokenizer(WORDS), tokenizer(["<pad>", "</s>", "<tool>", "a", "b", "c"]))
    assert found.trouble is None and found.renamed == [(2, "<r1>", "<tool>")]


def test_tokens_of_one_side_are_listed() -> None:
    found = compare(tokenizer([*WORDS, "x"]), tokenizer(WORDS[:-1]))
    assert found.trouble is None
    assert (found.student_only, found.teacher_only) == (["c", "x"], [])


def test_a_model_with_fewer_columns_than_tokens() -> None:
    assert too_narrow(10, {"student": 10, "teacher": 12}) is None
    assert (
        too_narrow(10, {"student": 12, "teacher": 8})
        == "the tokenizer has 10 tokens and the teacher 8 columns"
    )
