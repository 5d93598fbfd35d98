"""Writes values of the data into messages: lists of names, long values, and the kinds that users know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# The types of JSON, as users call them.
KINDS: dict[type, str] = {
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "a mapping",
}


def listed(items: Sequence[str], most: int = 3) -> str:
    """The first ``most`` items, and how many more there are."""
    shown = ", ".join(items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most:,} more"


def short(value: Any, most: int = 60) -> str:
    """A value as Python writes it, in at most ``most`` characters."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."
