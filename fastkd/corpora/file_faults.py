"""Says in one sentence why a file cannot be read, with the line that is at fault."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastkd.corpora.listing import KINDS, short

COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_WIDE = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_LONGEST = 300


def opened(file: Path) -> Any:
    """The file's bytes, without their compression."""
    return COMPRESSED.get(file.suffix.lower(), open)(file, "rb")


def check_readable(file: Path) -> None:
    """Raise a ``ValueError`` if a text file is empty, cannot be opened, or begins as one in UTF-16 does."""
    try:
        with opened(file) as content:
            head = content.read(4096)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise ValueError(
            f"{str(file)!r} cannot be opened: {getattr(error, 'strerror', None) or error}"
        ) from error
    wide = next((name for mark, name in _WIDE.items() if head.startswith(mark)), None)
    if wide is None and len(head) > 1 and 0 in (head[0], head[1]) and head[:2] != b"\0\0":
        wide = "UTF-16"
    if wide is not None:
        raise ValueError(f"{str(file)!r} is in {wide}: save it as UTF-8")
    if not head.removeprefix(codecs.BOM_UTF8).strip() and len(head) < 4096:
        raise ValueError(f"{str(file)!r} is empty")


def first_line(file: Path) -> str:
    """The first line of a text file; bytes that are not UTF-8 are replaced."""
    with opened(file) as content:
        return str(content.readline(2**20).decode("utf-8-sig", "replace"))


def fault(file: Path, reader: str, error: BaseException) -> str:
    """A sentence for the error of a loader.

    Args:
        reader: ``text``, ``json``, ``csv`` or ``parquet``.
        error: its exception. The sentence quotes it only if the file itself shows no fault.
    """
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    found = None
    if isinstance(cause, MemoryError):
        found = "is too large for the memory"
    elif reader != "parquet":
        found = _not_utf8(file) or (_not_json(file) if reader == "json" else None)
    return f"{str(file)!r} {found or 'cannot be read: ' + _reason(cause)}"


def _reason(cause: BaseException) -> str:
    text = " ".join(str(cause).split()) or type(cause).__name__
    if "corresponds to no data" in text:
        return "it has no rows"
    saw = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", text)
    if saw:
        return f"line {saw[2]} has {saw[3]} fields, and those before it {saw[1]}: quote texts with commas"
    return text[:_LONGEST]


def _not_utf8(file: Path) -> str | None:
    with opened(file) as content:
        for number, line in enumerate(content, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return (
                    f"is not UTF-8 (line {number} has the byte 0x{line[error.start]:02x}): save it as UTF-8, "
                    "for example with iconv -f latin1 -t utf-8"
                )
    return None


def _not_json(file: Path) -> str | None:
    """The first line that is not JSON, in a file of one value per line or of one value as a whole."""
    with opened(file) as content:
        start = content.read(2**16).decode("utf-8-sig", "ignore").lstrip()
    if start.startswith("[") or _is_spread(start):
        with opened(file) as content:
            return _parse_error(content.read().decode("utf-8-sig"), 1)
    kinds: dict[str, tuple[str, int]] = {}
    with opened(file) as content:
        for number, raw in enumerate(content, 1):
            line = raw.decode("utf-8-sig").strip()
            if not line:
                continue
            if (found := _parse_error(line, number)) is not None:
                return found
            value = json.loads(line)
            if not isinstance(value, dict):
                return f'has no row in line {number}: {short(line)} is not of the form {{"column": ...}}'
            if (half := re.search(r"[\ud800-\udfff]", _text(value))) is not None:
                return f"has half a character ({half[0]!a}) in line {number}: remove it"
            for name, item in value.items():
                if item is None:
                    continue
                kind = KINDS[type(item)]
                before, first = kinds.setdefault(name, (kind, number))
                if kind != before:
                    return (
                        f"has {name} as {before} in line {first} and as {kind} in line {number}: "
                        "give it one type"
                    )
    return None


def _is_spread(start: str) -> bool:
    """Whether a file's first line is only the beginning of a value that goes on over several lines."""
    first = start.split("\n")[0].rstrip()
    return first in ("{", "[") or (first.endswith(("{", "[", ",")) and _parse_error(first, 1) is not None)


def _parse_error(text: str, line: int) -> str | None:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        lines = text.rstrip().split("\n")
        if error.pos >= len(text.rstrip()):
            return f"ends in the middle of a value, in line {line + len(lines) - 1}: {short(lines[-1])}"
        at, shown = line + error.lineno - 1, lines[error.lineno - 1]
        return f"is not JSON in line {at}, column {error.colno} ({error.msg}): {short(shown)}"
    return None


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
