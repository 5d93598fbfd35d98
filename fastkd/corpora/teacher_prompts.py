"""Prompts that the teacher alone reads: a worked solution, a hint, or a system message beside the row."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

# The key of the tokens of a row's other prompt, in encoded rows.
TEACHER_PROMPT = "teacher_prompt"


def columns_in(template: str) -> list[str]:
    """The columns that a template such as ``{prompt} The answer is {answer}.`` names.

    Raises:
        ValueError: braces that do not match, or a field without a name.
    """
    try:
        found = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"teacher_prompt {template!r}: {error}") from error
    if not all(name.isidentifier() for name in found):
        raise ValueError(
            f"teacher_prompt {template!r} must name columns in its braces, for example {{prompt}}"
        )
    return list(dict.fromkeys(found))


def check_columns(template: str, columns: Sequence[str], field: str) -> None:
    """Raise a ``ValueError`` if the template names a column that the data lacks."""
    if missing := [name for name in columns_in(template) if name not in columns]:
        raise ValueError(
            f"teacher_prompt names {', '.join(missing)}, and {field} has the columns {', '.join(columns)}"
        )


def prompted(row: Mapping[str, Any], template: str, column: str) -> dict[str, Any]:
    """The row with the teacher's prompt in place of its own; a conversation gets it as system message.

    Args:
        row: the raw row.
        template: the setting ``teacher_prompt``.
        column: the row's prompt, source or conversation.

    Raises:
        ValueError: a conversation with several answers.
    """
    text = template.format_map(
        {name: "" if row[name] is None else row[name] for name in columns_in(template)}
    )
    if isinstance(row[column], str):
        return {**row, column: text}
    messages = [dict(message) for message in row[column]]
    answers = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
    if answers and answers != [len(messages) - 1]:
        raise ValueError(
            "teacher_prompt needs conversations with one answer, at their end: each of several answers would "
            "need a prompt of its own"
        )
    before = messages[: answers[0]] if answers else messages
    if before and before[0].get("role") == "system":
        before = before[1:]
    return {**row, column: [{"role": "system", "content": text}, *before]}
