"""The assistant's answers in a conversation's text: the characters and tokens that a model is trained on."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastkd.corpora.conversations import SAID, Chat, Message, content_text
from fastkd.corpora.prompts import Span, span_ids

# Conversations with at most this many answers are rendered once for each of them. In longer ones the time
# would grow with the square of the number of messages.
_FEW = 2
# An answer that no template changes.
_PROBE = "fastkd"


@dataclass(frozen=True)
class Piece:
    """A conversation, or its beginning, as tokens.

    Attributes:
        ids: the tokens.
        said: which of them are answers that are trained on.
        answers: how many answers these are.
    """

    ids: list[int]
    said: list[bool]
    answers: int


def pieces(chat: Chat, last_only: bool = False) -> list[Piece]:
    """The conversation up to its last answer, as one piece or several, in order; none without any answer.

    Some chat templates rewrite earlier answers when a conversation goes on: most drop their thinking. A model
    that answers has never seen itself write those. So an answer is trained on in a piece whose text begins
    with the conversation as it was when that answer was the last one, and every answer is trained on once. A
    template that rewrites nothing makes one piece.

    A template with ``{% generation %}`` markers makes one piece, in which the marked tokens are the answers.

    Args:
        last_only: return only the last piece, in a time that grows linearly with the number of messages.

    Raises:
        ValueError: a template that refuses the conversation, or that rewrites what comes before an answer.
    """
    answers = chat.answers()
    if not answers:
        return []
    chat = chat.until(answers[-1] + 1)
    if chat.marks_answers() and getattr(chat.tokenizer, "is_fast", False):
        marked = _marked(chat, answers)
        if any(marked.said):
            return [marked]
    if len(answers) > _FEW and (spans := _spans_turn_by_turn(chat, answers)) is not None:
        return [_piece(chat.rendered(), spans, chat.tokenizer)]
    made = []
    left = list(answers)
    whole = chat.rendered()
    while left:
        spans = [_span(chat, left.pop(), whole)]
        before = ""
        while left and whole.startswith(before := chat.until(left[-1] + 1).rendered()):
            spans.insert(0, _span(chat, left.pop(), before))
        made.append(_piece(whole, spans, chat.tokenizer))
        if last_only:
            break
        whole = before
    return made[::-1]


def prompt_text(chat: Chat) -> str:
    """A conversation that ends before an answer, with the opening of that answer."""
    return chat.rendered(opens_answer=True)


def prompt_tokens(chat: Chat) -> list[int]:
    """The tokens of :func:`prompt_text`."""
    return span_ids(prompt_text(chat), (), chat.tokenizer)[0]


def answer_text(chat: Chat, number: int) -> str:
    """An answer's content; if it also thinks or calls tools, all of it as the chat template writes it,
    without the end of the turn.
    """
    message = chat.messages[number]
    if not any(message.get(key) for key in SAID if key != "content"):
        return content_text(message["content"])
    whole = chat.until(number + 1).rendered()
    begin, end = _span(chat, number, whole)
    said = whole[begin:end]
    other = chat.of([*chat.messages[:number], {"role": "assistant", "content": _PROBE}])
    with contextlib.suppress(ValueError):  # the end of a turn is what follows the content of a plain answer
        said = said.removesuffix(other.rendered().rpartition(_PROBE)[2])
    return said.strip()


def as_content(chat: Chat, text: str) -> str:
    """The content of a message that says what a model wrote after :func:`prompt_text`.

    A prompt may open a thinking block, which the model's text then continues. Templates expect the opening in
    the message, so it is put in front if the template writes the model's text only then.
    """
    opened = prompt_text(chat)
    own = opened[_common(opened, chat.rendered()) :]
    starts = [at for token in chat.tokenizer.get_added_vocab() for at in _places(token, own)]
    for content in (text, *(own[at:] + text for at in sorted(set(starts), reverse=True))):
        try:
            whole = chat.of([*chat.messages, {"role": "assistant", "content": content}]).rendered()
        except ValueError:
            continue
        if whole.startswith(opened) and _dense(whole[len(opened) :]).startswith(_dense(text)):
            return content
    return text


def _piece(text: str, spans: Sequence[Span], tokenizer: Any) -> Piece:
    return Piece(*span_ids(text, spans, tokenizer), len(spans))


def _marked(chat: Chat, answers: Sequence[int]) -> Piece:
    made = chat.applied(tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    ids, said = list(made["input_ids"]), [bool(mark) for mark in made["assistant_masks"]]
    assistants = [i for i, message in enumerate(chat.messages) if message["role"] == "assistant"]
    starts = [i for i, mark in enumerate(said) if mark and not (i and said[i - 1])]
    if len(starts) == len(assistants):  # the markers of each message are known, so some can be left out
        bounds = [*starts, len(said)]
        for number, message in enumerate(assistants):
            if message not in answers:
                said[bounds[number] : bounds[number + 1]] = [False] * (bounds[number + 1] - bounds[number])
    return Piece(ids, said, len(answers))


def _span(chat: Chat, number: int, own: str) -> Span:
    """The characters of an answer.

    Args:
        number: number of the answer's message.
        own: text of the conversation up to and with the answer.
    """
    if not number:
        return _after_opening(chat.until(1), own), len(own)
    before = chat.until(number)
    opened = before.rendered(opens_answer=True)
    begin = _common(opened, own)
    # A template may open answers with a thinking block that it does not write for an answer without thinking.
    if begin < len(opened) and begin < len(before.rendered()):
        raise ValueError(
            "the tokenizer's chat template rewrites what comes before an answer when the answer follows, so "
            "the assistant's tokens cannot be told apart: give prompt and completion columns instead of "
            "messages"
        )
    return begin, len(own)


def _after_opening(first: Chat, own: str) -> int:
    """The beginning of an answer that nothing comes before: the opening is that of the answer after it."""
    opened = first.rendered(opens_answer=True)
    opening = opened[len(own) :] if opened.startswith(own) else ""
    at = own.find(opening) if opening else -1
    return at + len(opening) if at >= 0 else 0


def _spans_turn_by_turn(chat: Chat, answers: Sequence[int]) -> list[Span] | None:
    """The spans of all answers, in a time that grows linearly with the number of messages; None if the
    template does not render each turn by itself.

    Each turn is rendered after the first one alone. Where the results, put together, are the text of the
    whole conversation, they are its turns.
    """
    whole = chat.rendered()
    first = chat.until(answers[0] + 1)
    head = first.rendered()
    if not whole.startswith(head):
        return None
    spans = [_span(first, answers[0], head)]
    position, start = len(head), answers[0] + 1
    for answer in answers[1:]:
        turn: list[Message] = chat.messages[start : answer + 1]
        try:
            short = chat.of([*first.messages, *turn])
            text = short.rendered()
            begin, end = _span(short, len(short.messages) - 1, text)
        except ValueError:
            return None
        if (
            not text.startswith(head)
            or begin < len(head)
            or not whole.startswith(text[len(head) :], position)
        ):
            return None
        moved = position - len(head)
        spans.append((begin + moved, end + moved))
        position, start = end + moved, answer + 1
    return spans if position == len(whole) else None


def _common(one: str, other: str) -> int:
    """The number of characters with which both begin."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(i for i in range(length) if one[i] != other[i])


def _places(token: str, text: str) -> list[int]:
    found, at = [], text.find(token)
    while at >= 0:
        found.append(at)
        at = text.find(token, at + 1)
    return found


def _dense(text: str) -> str:
    """The text without spaces, which templates trim."""
    return "".join(text.split())
