"""Columns of other projects' data sets: which of them are read, and which names are close to ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastkd.corpora.local_files import where

# The speakers of ShareGPT's conversations and their relatives, as roles of a chat template.
ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
}
# Names under which other data sets have a column of ours.
SYNONYMS = {
    "text": ("content", "body", "sentence", "document", "review", "article"),
    "prompt": ("question", "query", "instruction", "problem", "input"),
    "completion": ("answer", "response", "output", "solution", "chosen"),
    "messages": ("conversation", "conversations", "dialog", "dialogue", "chat"),
    "source": ("src", "input", "document", "article"),
    "target": ("tgt", "summary", "highlights", "output"),
    "label": ("labels", "class", "category", "intent", "sentiment", "target"),
}


def columns_of(rows: Any) -> list[str]:
    """The names of a data set's columns; empty if it has none, as a list of rows.

    A stream may learn its columns only from its first row, which is read then.
    """
    names = getattr(rows, "column_names", None)
    if names is None and hasattr(rows, "_resolve_features"):  # an `IterableDataset` of `datasets`
        names = list(next(iter(rows), {}))
    return list(names or [])


def converted(field: str, rows: Any, args: Any = None) -> Any:
    """The rows with ShareGPT's ``conversations`` (turns of ``from`` and ``value``) as ``messages``; also if
    the column was mapped to ``messages``.

    A column ``system`` beside it becomes the first message. Other data sets are returned unchanged.

    Raises:
        ValueError: a speaker that no role stands for. A stream raises it when the row is read.
    """
    columns = columns_of(rows)
    column = next((name for name in ("messages", "conversations") if name in columns), None)
    if column is None or (column == "messages" and not _has_speakers(rows, column)):
        return rows
    read = [name for name in (column, "system") if name in columns]

    def messages(row: dict[str, Any], number: int) -> dict[str, Any]:
        try:
            return {"messages": turns(row[column], row.get("system"))}
        except ValueError as error:
            raise ValueError(f"{where(field, number, args)}: {error}") from error

    return rows.map(messages, with_indices=True, remove_columns=read)


def _has_speakers(rows: Any, column: str) -> bool:
    """Whether the first turn of the first row has a speaker under ``from``, and no role."""
    row: dict[str, Any] = next(iter(rows), {})
    conversation = row.get(column)
    first = conversation[0] if isinstance(conversation, list) and conversation else None
    return isinstance(first, dict) and first.get("from") is not None and first.get("role") is None


def turns(conversation: Any, system: str | None = None) -> list[dict[str, Any]]:
    """A conversation of ShareGPT as messages with ``role`` and ``content``."""
    if conversation is None:
        return []
    if not isinstance(conversation, (list, tuple)):
        raise ValueError(f"conversations is {conversation!r:.60}, not a list of turns")
    made: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for turn in conversation:
        if not isinstance(turn, dict):
            raise ValueError(f"a turn of conversations is {turn!r:.60}, not {{from: ..., value: ...}}")
        speaker = turn.get("from") or turn.get("role")
        role = ROLES.get(str(speaker).lower())
        if role is None:
            raise ValueError(
                f"conversations has a turn from {speaker!r}, and the speakers known are {', '.join(ROLES)}"
            )
        said = turn.get("value")
        made.append({"role": role, "content": turn.get("content") if said is None else said})
        if turn.get("weight") is not None:
            made[-1]["weight"] = turn["weight"]
    return made


def proposal(columns: Sequence[str], layouts: Sequence[tuple[str, ...]]) -> str:
    """A ``column_mapping`` that gives these columns the names of a layout, as an example for a message."""
    best: dict[str, str] = {}
    for layout in layouts:
        found = {ours: theirs for ours in layout if (theirs := near(ours, columns)) is not None}
        missing = [ours for ours in layout if ours not in found]
        if not missing and (not best or len(layout) > len(best)):
            best = found
    # A column that has our name already needs no mapping.
    best = {ours: theirs for ours, theirs in best.items() if ours != theirs}
    if not best:
        wanted = next((ours for ours in layouts[-1] if ours not in columns), layouts[0][-1])
        others = [name for name in columns if all(name not in layout for layout in layouts)]
        best = {wanted: others[0] if others else "..."}
    shown = [
        f"{ours}: {theirs if theirs == theirs.strip() else repr(theirs)}" for ours, theirs in best.items()
    ]
    return "{" + ", ".join(shown) + "}"


def near(ours: str, columns: Sequence[str]) -> str | None:
    """The column that has our name or one that others give it; None if there is none."""
    if ours in columns:
        return ours
    plain = {name.strip().lower(): name for name in reversed(columns)}
    return next((plain[name] for name in (ours, *SYNONYMS.get(ours, ())) if name in plain), None)
