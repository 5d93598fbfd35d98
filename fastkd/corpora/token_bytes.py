"""The bytes of text that each token of a vocabulary stands for, by which two tokenizers are compared."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

# Texts that tell how a tokenizer writes its tokens: by spaces, punctuation, accents and other scripts.
_PROBES = ("the cat sat on a mat", "a, b. c", "naïve café", "日本 😀")
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACES = b" \t\r\n"


@dataclass(frozen=True)
class TokenBytes:
    """A vocabulary as bytes.

    Attributes:
        tokens: the bytes of each token by its number. A special token is its name; None ends a text.
        ends: the tokens that end a text.
        added: the special tokens, and others that were added to the vocabulary.
        spaces: whether the tokens keep the text's spaces.
        split: a function from bytes to those of the first token into which the tokenizer splits them; None
            where the tokenizer does not say.
    """

    tokens: Sequence[bytes | None]
    ends: frozenset[int]
    added: frozenset[int]
    spaces: bool
    split: Callable[[bytes], bytes | None]

    def of(self, ids: Sequence[int], ends: frozenset[int] | None = None) -> list[bytes | None]:
        """The bytes of some tokens; a number without a token gives its own placeholder.

        Args:
            ends: the tokens that end a text, if they are other ones.
        """
        ends = self.ends if ends is None else ends
        return [
            None if token in ends else self.tokens[token] if token < len(self.tokens) else b"<%d>" % token
            for token in ids
        ]

    def without_spaces(self) -> TokenBytes:
        """The same vocabulary with all spaces removed, to compare with one that has none."""
        made = [None if token is None else _without_spaces(token) for token in self.tokens]
        return replace(self, tokens=made, spaces=False)


def token_bytes(tokenizer: Any) -> TokenBytes:
    """The bytes of a tokenizer's tokens.

    Tokenizers write bytes in a few ways: GPT-2's stand-in characters, SentencePiece's ``▁`` and ``<0x0A>``,
    WordPiece's ``##``, ByT5's characters, or the text itself. The way is found by tokenizing some texts: it
    is the one with which the tokens give most of these texts again.

    Args:
        tokenizer: a tokenizer of `transformers`.
    """
    size = len(tokenizer)
    named = [name if name is not None else "" for name in tokenizer.convert_ids_to_tokens(list(range(size)))]
    added = {int(number): str(token) for number, token in tokenizer.added_tokens_decoder.items()}
    eos = tokenizer.eos_token_id
    ends = frozenset() if eos is None else frozenset([int(eos)])
    way = _reading(tokenizer)
    if way.read is _of_metaspace:  # some tokenizers list the tokens of single bytes among the added ones
        added = {i: name for i, name in added.items() if not _BYTE.fullmatch(name)}
    made = [added[i].encode() if i in added else way.read(named[i]) for i in range(size)]
    known = [None if i in ends else token for i, token in enumerate(made)]
    return TokenBytes(known, ends, frozenset(added), way.spaces, _splitter(tokenizer, way))


def comparable(student: TokenBytes, teacher: TokenBytes) -> tuple[TokenBytes, TokenBytes]:
    """Both vocabularies as bytes that can be compared: without spaces if one of them has none."""
    if student.spaces and teacher.spaces:
        return student, teacher
    return student.without_spaces(), teacher.without_spaces()


def common_bytes(one: bytes, other: bytes) -> int:
    """The number of bytes with which both begin."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(i for i in range(length) if one[i] != other[i])


def _splitter(tokenizer: Any, way: _Way) -> Callable[[bytes], bytes | None]:
    """The function ``split`` of :class:`TokenBytes`."""
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)

    def split(given: bytes) -> bytes | None:
        text = way.write(given)
        pieces = model.tokenize(text) if text and model is not None else []
        return way.read(pieces[0].value) if pieces else None

    return split


def _reading(tokenizer: Any) -> _Way:
    """The way in which the tokenizer writes its tokens."""
    split = [tokenizer.convert_ids_to_tokens(_ids(text, tokenizer)) for text in _PROBES]
    best, most = _WAYS[0], -1
    for way in _WAYS:
        same = 0
        for text, tokens in zip(_PROBES, split, strict=True):
            given, wanted = b"".join(map(way.read, tokens)).lower(), text.encode()
            if way.spaces:
                same += common_bytes(given.removeprefix(b" "), wanted)
            else:  # spaces that are not kept do not agree
                same += common_bytes(_without_spaces(given), _without_spaces(wanted))
        if same > most:
            best, most = way, same
    return best


def _ids(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _without_spaces(given: bytes) -> bytes:
    return given.translate(None, _SPACES)


def _stand_ins() -> dict[str, int]:
    """GPT-2's character for each byte (Radford et al. 2019): printable ones stand for themselves."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(other)}


_STAND_INS = _stand_ins()
_CHARACTERS = {byte: char for char, byte in _STAND_INS.items()}


def _of_stand_ins(token: str) -> bytes:
    if all(char in _STAND_INS for char in token):
        return bytes(_STAND_INS[char] for char in token)
    return token.encode()


def _of_metaspace(token: str) -> bytes:
    if (found := _BYTE.fullmatch(token)) is not None:
        return bytes([int(found[1], 16)])
    return token.replace("▁", " ").encode()


def _of_pieces(token: str) -> bytes:
    return token.removeprefix("##").encode()


def _of_characters(token: str) -> bytes:
    return token.encode("latin-1") if all(ord(char) < 256 for char in token) else token.encode()


def _plain(token: str) -> bytes:
    return token.encode()


def _to_stand_ins(given: bytes) -> str | None:
    return "".join(_CHARACTERS[byte] for byte in given)


def _to_metaspace(given: bytes) -> str | None:
    text = _to_text(given)
    return None if text is None else text.replace(" ", "▁")


def _to_characters(given: bytes) -> str | None:
    return given.decode("latin-1")


def _to_text(given: bytes) -> str | None:
    try:
        return given.decode()
    except UnicodeDecodeError:
        return None


@dataclass(frozen=True)
class _Way:
    """One way of writing bytes as a token's name.

    Attributes:
        read: from a name to bytes.
        write: from bytes to the name that they would have; None where there is none.
        spaces: whether names have spaces.
    """

    read: Callable[[str], bytes]
    write: Callable[[bytes], str | None]
    spaces: bool


# The first of equally good ways counts.
_WAYS = (
    _Way(_of_stand_ins, _to_stand_ins, True),
    _Way(_of_metaspace, _to_metaspace, True),
    _Way(_of_characters, _to_characters, True),
    _Way(_plain, _to_text, True),
    _Way(_of_pieces, _to_text, False),
)
