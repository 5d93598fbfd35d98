"""The forms in which rows come: text, lists of messages, and the columns of Alpaca."""

from __future__ import annotations

from typing import Any

from fastkd.corpora.listing import KINDS, short
from fastkd.corpora.tasks.encoded import LABELS, Row

Layout = tuple[str, ...]

# The layout of rows that another program has encoded.
TOKENS: Layout = ("input_ids",)
# The layouts of a language model whose rows have no prompt.
WITHOUT_PROMPT: tuple[Layout, ...] = (("text",), TOKENS)

# The wording with which Alpaca's authors gave their columns to a model without a chat template
# (Taori et al. 2023, https://github.com/tatsu-lab/stanford_alpaca).
_ALPACA = (
    "Below is an instruction that describes a task{more}. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n{input}### Response:\n"
)


def is_messages(value: Any) -> bool:
    """Whether a value is a list of messages, each with a role."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and "role" in item for item in value)
    )


def check_values(row: Row, layout: Layout, messages_in: Layout = ()) -> None:
    """Raise a ``ValueError`` for a value that should be text and is not.

    Labels and conversations are left to those who read them.

    Args:
        messages_in: the columns that may also hold a list of messages.
    """
    for name in layout:
        value = row.get(name)
        if (
            value is None
            or name in ("labels", *LABELS, "messages")
            or (name in messages_in and is_messages(value))
        ):
            continue
        if isinstance(value, str):
            if not value.isascii():
                _check_unicode(name, value)
            continue
        kind = KINDS.get(type(value), type(value).__name__)
        raise ValueError(
            f"{name} is {short(value)}, {kind} and not text: write it as text, or name another column with "
            "column_mapping"
        )


def _check_unicode(name: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} has half a character ({value[error.start]!a}) at position {error.start}: remove it, or "
            "write the text again as UTF-8"
        ) from error


def instruction(row: Row, has_chat_template: bool) -> Row:
    """A row of Alpaca as ``prompt`` and ``completion``: a user's message for a tokenizer with a chat
    template, or else a text in Alpaca's own wording.
    """
    asked, given = row["instruction"] or "", row.get("input") or ""
    prompt: Any
    if not asked and not given:
        prompt = ""
    elif has_chat_template:
        prompt = [{"role": "user", "content": "\n\n".join(part for part in (asked, given) if part)}]
    else:
        prompt = _ALPACA.format(
            more=", paired with an input that provides further context" if given else "",
            instruction=asked,
            input=f"### Input:\n{given}\n\n" if given else "",
        )
    return {"prompt": prompt, "completion": row.get("output")}


def joined(prompt: Any, completion: Any) -> list[dict[str, Any]]:
    """A prompt and its completion, one of which is a list of messages, as one conversation.

    The answers that the prompt already holds get the weight 0: they are read and not trained on.
    """
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    said = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    before = [{**message, "weight": 0} if message["role"] == "assistant" else message for message in asked]
    return [*before, *said]
