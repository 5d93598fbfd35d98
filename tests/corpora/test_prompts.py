"""Test how a prompt and its completion are split into tokens."""

from __future__ import annotations

from typing import Any

import pytest
from support import chats
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fastkd.corpora.prompts import pair_ids, prompt_ids, span_ids, text_ids


def word_starts(kind: str) -> Any:
    """A tokenizer of letters that puts a mark before each word, and before the first letter of each text."""
    letters = ["<s>", "</s>", "▁", ":", *map(chr, range(97, 123))]
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    if kind == "metaspace":
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        made.decoder = decoders.Metaspace(prepend_scheme="first")
    else:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    made.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A $B", [("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", bos_token="<s>")


def parts(tokenizer: Any, prompt: str, completion: str) -> tuple[list[str], list[str]]:
    """The tokens that are the prompt's, and those that are the completion's."""
    ids, said = pair_ids(prompt, completion, tokenizer)
    tokens = tokenizer.convert_ids_to_tokens(ids)
    first = said.index(True)
    assert not any(said[:first]) and all(said[first:])
    return tokens[:first], tokens[first:]


@pytest.mark.parametrize("kind", ["metaspace", "prepend", "python"])
@pytest.mark.parametrize(
    ("prompt", "completion", "answer"),
    [("say:", "yes", "yes"), ("say:", " yes", "▁yes"), ("say", "a b", "a▁b"), ("", "yes", "▁yes")],
)
def test_no_answer_begins_with_an_invented_space(
    kind: str, prompt: str, completion: str, answer: str
) -> None:
    tokenizer = chats.Slow() if kind == "python" else word_starts(kind)
    before, after = parts(tokenizer, prompt, completion)
    assert "".join(after) == answer
    expected = ["▁", *prompt] if prompt else []
    assert before == expected if kind == "python" else before == ["<s>", *expected]
    assert prompt_ids(prompt, tokenizer)[: len(before)] == tokenizer.convert_tokens_to_ids(before)


@pytest.mark.parametrize("kind", ["rust", "python"])
def test_a_token_across_the_boundary_is_the_completions(kind: str) -> None:
    tokenizer = chats.Slow() if kind == "python" else chats.tokenizer(merges=[("Ċ", "Ċ")])
    before, after = parts(tokenizer, "ab\n", "\ncd")
    assert [token.replace("Ċ", "\n") for token in after] == ["\n\n", "c", "d"]
    assert before[-2:] == ["a", "b"]


def test_letters_of_several_tokens_are_not_torn() -> None:
    """The tokens of one letter, all at the same position, go to the same side."""
    tokenizer = chats.tokenizer()
    ids, said = pair_ids("é", "ü", tokenizer)
    assert len(ids) == 4 and said == [False, False, True, True]


def test_what_a_text_begins_and_ends_with_is_not_added_again() -> None:
    tokenizer = word_starts("metaspace")
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    for text in ("a", "<s>a", "a</s>", "<s>a</s>"):
        ids = text_ids(text, tokenizer)
        assert (ids.count(begin), ids.count(end)) == (1, 1), text
    assert prompt_ids("<s>a", tokenizer).count(begin) == 1
    ids, _ = pair_ids("<s>a", "b</s>", tokenizer)
    assert (ids.count(begin), ids.count(end)) == (1, 1) and ids[0] == begin and ids[-1] == end
    # Targets of an encoder-decoder have no beginning here, and one end.
    assert text_ids("ab</s>", tokenizer, is_target=True).count(end) == 1
    # A tokenizer that adds none leaves the text's own.
    assert text_ids("<s><s>a", chats.tokenizer()).count(0) == 2


def test_prompts_are_not_closed() -> None:
    tokenizer = word_starts("metaspace")
    assert prompt_ids("ab", tokenizer) == tokenizer("ab")["input_ids"][:-1]
    assert prompt_ids("ab</s>", tokenizer)[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("kind", ["rust", "python"])
def test_spans(kind: str) -> None:
    tokenizer = chats.Slow() if kind == "python" else chats.tokenizer()
    text = "ab cd ef"
    ids, said = span_ids(text, [(0, 2), (5, 8)], tokenizer)
    marks = [token for token, mine in zip(tokenizer.convert_ids_to_tokens(ids), said, strict=True) if mine]
    assert "".join(marks).replace("▁", " ").replace("Ġ", " ").strip() == "ab ef"
    assert not any(span_ids(text, [], tokenizer)[1])
