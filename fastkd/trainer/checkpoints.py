"""Checkpoints that count only when they are whole.

A process may be killed at any moment while it writes or deletes a checkpoint. So the last file that is
written into a checkpoint is a seal with the checksum of every other file. A run never resumes from a
checkpoint that has no seal or does not match it.
"""

from __future__ import annotations

import json
from pathlib import Path

from fastkd.files import file_digest, write_json

SEAL = "sealed.json"


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
