"""Conversations as a chat template reads them, and the texts that it makes of them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

from fastkd.corpora.listing import short

Message = dict[str, Any]

# Columns beside ``messages`` that a chat template reads.
BESIDE = ("tools", "chat_template_kwargs")
# Keys under which an answer may say something.
SAID = ("content", "tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")
_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PROBE = "fastkd"


class ChatSettings(Protocol):
    """The setting that this module reads: keywords for the chat template of every conversation."""

    chat_template_kwargs: dict[str, Any] | str | None


@dataclass(frozen=True)
class Chat:
    """A conversation, with everything that a chat template is given.

    Attributes:
        messages: each with a ``role``; no value in them is None.
        tokenizer: has the template.
        tools: JSON schemas of the functions that the assistant can call; None for no tools.
        options: further keywords of the template.
    """

    messages: list[Message]
    tokenizer: Any
    tools: list[Any] | None
    options: dict[str, Any]

    def rendered(self, opens_answer: bool = False) -> str:
        """The conversation as text, with or without the opening of an answer after it.

        Raises:
            ValueError: the tokenizer has no template, or its template refuses the conversation.
        """
        return str(self.applied(tokenize=False, add_generation_prompt=opens_answer))

    def applied(self, **options: Any) -> Any:
        """The result of the tokenizer's ``apply_chat_template``, with its errors in one sentence."""
        if not getattr(self.tokenizer, "chat_template", None) and "chat_template" not in self.options:
            raise ValueError(
                "the tokenizer has no chat template, which conversations need: put a chat_template.jinja "
                "into its directory, or give prompt and completion columns instead of messages"
            )
        try:
            return self.tokenizer.apply_chat_template(
                self.messages, tools=self.tools, **{**self.options, **options}
            )
        except Exception as error:  # a template can fail with any error
            reason = " ".join(str(error).split()) or type(error).__name__
            roles = ", ".join(str(message["role"]) for message in self.messages[:8])
            more = ", ..." if len(self.messages) > 8 else ""
            raise ValueError(
                f"the tokenizer's chat template refuses the conversation ({roles}{more}): {reason}"
            ) from error

    def of(self, messages: list[Message]) -> Chat:
        """Other messages with the same tools and keywords."""
        return replace(self, messages=messages)

    def until(self, count: int) -> Chat:
        """The first messages."""
        return self.of(self.messages[:count])

    def answers(self) -> list[int]:
        """The numbers of the assistant's messages that are trained on. Those that are empty or have the
        weight 0 are read only.
        """
        return [
            i
            for i, message in enumerate(self.messages)
            if message["role"] == "assistant"
            and any(message.get(key) for key in SAID)
            and message.get("weight", 1) != 0
        ]

    def marks_answers(self) -> bool:
        """Whether the template's author marked the assistant's tokens with ``{% generation %}``."""
        try:
            template = self.tokenizer.get_chat_template(self.options.get("chat_template"), self.tools)
        except (AttributeError, ValueError):
            return False
        return _MARKERS.search(str(template)) is not None


def conversation(row: dict[str, Any], tokenizer: Any, settings: ChatSettings) -> Chat:
    """A row's conversation, without the keys that a table format filled in because other rows have them.

    Args:
        row: ``messages``, and perhaps ``tools`` and ``chat_template_kwargs``, which may be JSON text.

    Raises:
        ValueError: a value that is no conversation, or that a chat template cannot read.
    """
    messages = [_plain(message) for message in listed_messages(row.get("messages"))]
    for message in messages:
        if not message.get("content"):
            message["content"] = ""  # templates print a null, and some fail without the key
        if not message.get("tool_calls"):
            message.pop("tool_calls", None)  # templates ask whether the key exists
    for message in messages:
        if isinstance(message["content"], list) and not _reads_parts(tokenizer):
            message["content"] = _joined(message["content"])
    tools = _plain(_parsed("tools", row.get("tools"), list))
    options = settings.chat_template_kwargs or {}
    if not isinstance(options, dict):
        raise ValueError(f"chat_template_kwargs must be a mapping, not {options!r}")
    more = _plain(_parsed("chat_template_kwargs", row.get("chat_template_kwargs"), dict))
    return Chat(messages, tokenizer, tools or None, {**options, **(more or {})})


def listed_messages(given: Any) -> list[Message]:
    """The messages of a row as a list of mappings with a role.

    Raises:
        ValueError: a value that is no list of messages.
    """
    if isinstance(given, dict) and given and all(isinstance(value, list) for value in given.values()):
        # Older versions of `datasets` return a list of messages as a mapping of lists.
        given = [dict(zip(given, values, strict=True)) for values in zip(*given.values(), strict=True)]
    if given is None:
        return []
    if isinstance(given, str):
        raise ValueError(
            f"messages is text ({short(given)}), not a list of messages: parse its JSON when you write the "
            "file"
        )
    if not isinstance(given, (list, tuple)):
        raise ValueError(f"messages is {short(given)}, not a list of messages")
    for message in given:
        if not isinstance(message, dict):
            raise ValueError(f"messages holds {short(message)}, which is not {{role: ..., content: ...}}")
        if message.get("role") is None:
            if "from" in message and "value" in message:
                raise ValueError(
                    "messages has turns of 'from' and 'value', as ShareGPT does: name the column "
                    "conversations, or the keys role and content"
                )
            raise ValueError(f"a message has no role, but the keys {', '.join(map(str, message))}")
        content = message.get("content")
        if content is not None and not isinstance(content, (str, list)):
            raise ValueError(f"the content of a message is {short(content)}, not text")
    return list(given)


def _parsed(name: str, given: Any, kind: type) -> Any:
    """A value that may be JSON text, since tables cannot hold schemas that differ from row to row."""
    if given is None or given == "":
        return None
    made = given
    if isinstance(given, str):
        try:
            made = json.loads(given)
        except ValueError as error:
            raise ValueError(f"{name} is text that is no JSON ({error}): {short(given)}") from error
    if made is not None and not isinstance(made, kind):
        raise ValueError(f"{name} is {short(made)}, not a {'list' if kind is list else 'mapping'}")
    return made


def _plain(value: Any) -> Any:
    """The value without keys whose value is None: a table has the keys of all rows in each."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _reads_parts(tokenizer: Any) -> bool:
    """Whether the chat template reads content that is a list of parts, as those of multimodal models do.
    Others print the list.
    """
    return _template_reads_parts(tokenizer, str(getattr(tokenizer, "chat_template", None)))


@lru_cache(maxsize=8)
def _template_reads_parts(tokenizer: Any, template: str) -> bool:
    message = {"role": "user", "content": [{"type": "text", "text": _PROBE}]}
    try:
        said = str(tokenizer.apply_chat_template([message], tokenize=False))
    except Exception:  # a template that cannot read parts may fail with any error
        return False
    return _PROBE in said and "'text'" not in said


def _joined(parts: list[Any]) -> str:
    texts = []
    for part in parts:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
        if not isinstance(text, str):
            raise ValueError(f"a message has a part that is not text: {short(part)}")
        texts.append(text)
    return "".join(texts)


def content_text(content: Any) -> str:
    """The content of a message as text; of a list of parts, their texts."""
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text") or "") for part in content or () if isinstance(part, dict))


def prints_the_date(tokenizer: Any) -> bool:
    """Whether the tokenizer's chat template reads the clock, so that its texts change from day to day."""
    return "strftime_now" in str(getattr(tokenizer, "chat_template", None))


def why_texts_change(tokenizer: Any) -> str:
    """The end of a sentence about texts that are not those of an earlier day; empty if the tokenizer's chat
    template does not read the clock.
    """
    if not prints_the_date(tokenizer):
        return ""
    return (
        " (the tokenizer's chat template prints the date with strftime_now, so its texts change from day to "
        "day: write a date into the template, or set it with chat_template_kwargs if the template has a name "
        "for it)"
    )
