"""Checkpoints that count only when they are whole.

A process may be killed at any moment while it writes or deletes a checkpoint. So the last file that is
written into a checkpoint is a seal with the checksum of every other file. A run never resumes from a
checkpoint that has no seal or does not match it.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

SEAL = "sealed.json"


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, whole or not at all, as :func:`write_text` does."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: to a temporary name, flushed to the disk, and renamed into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def seal(folder: Path) -> None:
    """Mark a checkpoint as whole."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    write_json(folder / SEAL, {str(path.relative_to(folder)): file_digest(path) for path in files})


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint is sealed and its files have not changed since."""
    try:
        sealed = json.loads((folder / SEAL).read_text("utf-8"))
        return all(file_digest(folder / name) == digest for name, digest in sealed.items())
    except (OSError, ValueError, AttributeError):
        return False


def unseal(folder: Path) -> None:
    """Remove the seal, so that no run resumes from this checkpoint; needed before writing into an old one."""
    (folder / SEAL).unlink(missing_ok=True)


def last_whole(folder: Path) -> Path | None:
    """The newest whole checkpoint; None if there is none."""
    found = {}
    for path in folder.glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if path.is_dir() and number.isdigit():
            found[int(number)] = path
    return next((found[step] for step in sorted(found, reverse=True) if is_whole(found[step])), None)
