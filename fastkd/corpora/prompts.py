"""Texts as tokens: which tokens are an answer's, and no special token that the text has already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Beginning and end of a range of characters.
Span = tuple[int, int]

# Characters and tokens at the end of a text in which its closing tokens are looked for.
_LOOKED_AT = 1_000


def text_ids(text: str, tokenizer: Any, is_target: bool = False, max_length: int | None = None) -> list[int]:
    """A text's tokens with the special tokens that the tokenizer adds, but none of them twice: a text that a
    chat template has rendered has its beginning, and perhaps its end, already.

    Args:
        is_target: whether the text is one that a decoder writes, which some tokenizers treat otherwise.
        max_length: the most tokens to keep; the special tokens at the end are among them.
    """
    # `verbose=False`: no warning about texts longer than the model's window, which are cut later.
    if is_target:
        ids = list(tokenizer(text_target=text, verbose=False)["input_ids"])
        return ids[_undoubled(text, ids, tokenizer)]
    limit = {} if max_length is None else {"truncation": True, "max_length": max_length}
    ids = list(tokenizer(text, verbose=False, **limit)["input_ids"])
    return ids[_undoubled(text, ids, tokenizer)]


def prompt_ids(prompt: str, tokenizer: Any) -> list[int]:
    """A prompt's tokens, with the special tokens that open a text but without those that close it."""
    ids = text_ids(prompt, tokenizer)
    return ids[: _unclosed(prompt, ids, tokenizer)]


def pair_ids(prompt: str, completion: str, tokenizer: Any) -> tuple[list[int], list[bool]]:
    """The tokens of a prompt and its completion as one text, and which of them are the completion's.

    The two are not tokenized apart, because many tokenizers begin every text with a space that the completion
    does not have. A token across the boundary is the completion's.
    """
    text = prompt + completion
    ids, ends = _tokens(text, tokenizer)
    kept = _undoubled(text, ids, tokenizer)
    ids, ends = ids[kept], ends and ends[kept]
    ids = ids[: _unclosed(text, ids, tokenizer)]
    if not prompt:
        before = sum(token in (tokenizer.bos_token_id, tokenizer.cls_token_id) for token in ids[:1])
    elif ends is None:
        before = _common(ids, prompt_ids(prompt, tokenizer))
    else:
        before = next((i for i in range(len(ids)) if ends[i] > len(prompt)), len(ids))
    return ids, [i >= before for i in range(len(ids))]


def span_ids(text: str, spans: Sequence[Span], tokenizer: Any) -> tuple[list[int], list[bool]]:
    """The tokens of a text that has its special tokens already, and which of them end inside one of the
    spans. The spans are in order and do not overlap.
    """
    ids, ends = _tokens(text, tokenizer, add_special_tokens=False)
    said = [False] * len(ids)
    if ends is None:
        for begin, end in spans:
            first, last = (
                _common(ids, _tokens(text[:bound], tokenizer, add_special_tokens=False)[0])
                for bound in (begin, end)
            )
            said[first:last] = [True] * max(0, last - first)
        return ids, said
    token = 0
    for begin, end in spans:
        while token < len(ids) and ends[token] <= begin:
            token += 1
        while token < len(ids) and ends[token] <= end:
            said[token] = True
            token += 1
    return ids, said


def _tokens(text: str, tokenizer: Any, add_special_tokens: bool = True) -> tuple[list[int], list[int] | None]:
    """A text's tokens, and the position in the text after each of them; None for the latter if the tokenizer
    does not know it, as those written in Python do not. Special tokens that it adds are at 0.
    """
    known = bool(getattr(tokenizer, "is_fast", False))
    more = {"return_offsets_mapping": True} if known else {}
    made = tokenizer(text, add_special_tokens=add_special_tokens, verbose=False, **more)
    return list(made["input_ids"]), [end for _, end in made["offset_mapping"]] if known else None


def _undoubled(text: str, ids: list[int], tokenizer: Any) -> slice:
    """The part of a text's tokens without special tokens that the tokenizer added to those of the text."""
    opening = (tokenizer.bos_token, tokenizer.bos_token_id), (tokenizer.cls_token, tokenizer.cls_token_id)
    closing = (tokenizer.eos_token, tokenizer.eos_token_id), (tokenizer.sep_token, tokenizer.sep_token_id)
    first = any(_is_doubled(text, ids, *special) for special in opening)
    backwards = [(token and str(token)[::-1], number) for token, number in closing]
    end = text[: -_LOOKED_AT - 1 : -1], ids[: -_LOOKED_AT - 1 : -1]
    last = any(_is_doubled(*end, *special) for special in backwards)
    return slice(int(first), len(ids) - int(last))


def _is_doubled(text: str, ids: list[int], token: str | None, number: int | None) -> bool:
    """Whether a text begins with a special token and its tokens with one more of them."""
    own = 0
    while token and text.startswith(token, own * len(token)):
        own += 1
    return own > 0 and ids[: own + 1] == [number] * (own + 1)


def _unclosed(text: str, ids: list[int], tokenizer: Any) -> int:
    """The number of tokens before the special tokens that the tokenizer puts at the end of a text."""
    last = len(ids)
    closing = (tokenizer.eos_token_id, tokenizer.sep_token_id)
    while last and ids[last - 1] in closing and not text.endswith(str(tokenizer.eos_token)):
        last -= 1
    return last


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of tokens with which both begin."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (mine, theirs) in enumerate(pairs) if mine != theirs), min(len(one), len(other)))
