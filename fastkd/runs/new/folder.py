"""The directory of a new model is written whole or not at all, and no file of somebody else is lost."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastkd import files
from fastkd.directories import LOCK, claimed, require_writable, writing_to

RECORD = "new.json"
FIELD = "model directory"


def require_free(folder: Path) -> None:
    """Raise an error if a directory cannot become that of a new model.

    Raises:
        ValueError: it holds files that ``fastkd new`` did not write, or that were changed since.
        OSError: it cannot be written.
    """
    require_writable(folder.parent, FIELD)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is a file: give another directory")
    there = sorted(path.name for path in folder.iterdir() if path.name != LOCK) if folder.is_dir() else []
    if not there:
        return
    try:
        digests = json.loads((folder / RECORD).read_text("utf-8"))["files"]
        changed = [name for name in there if name != RECORD and not _unchanged(folder / name, digests)]
    except (OSError, ValueError, KeyError, TypeError):
        changed = there
    if changed:
        raise ValueError(
            f"{str(folder)!r} holds {changed[0]}, which fastkd new did not write or which was changed since: "
            "give another directory"
        )


def _unchanged(path: Path, digests: dict[str, str]) -> bool:
    return path.is_file() and digests.get(path.name) == files.file_digest(path)


@contextlib.contextmanager
def replacing(folder: Path, about: dict[str, Any]) -> Iterator[Path]:
    """An empty directory to write into, which becomes ``folder`` when the block ends without an error.

    Args:
        folder: a directory that :func:`require_free` accepts.
        about: what the record of the directory says beside the digests of its files.
    """
    beside = folder.with_name(f".{folder.name}.partial")
    made, before = beside / "new", beside / "before"
    with claimed(beside, FIELD), writing_to(folder, FIELD):
        try:
            _restore(before, folder)  # a command was killed between the two last steps
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            yield made
            digests = {
                path.name: files.file_digest(path) for path in sorted(made.iterdir()) if path.is_file()
            }
            files.write_json(made / RECORD, {**about, "files": digests})
            if folder.is_dir():
                os.replace(folder, before)
            os.replace(made, folder)
        finally:
            _restore(before, folder)
            shutil.rmtree(beside, ignore_errors=True)


def _restore(before: Path, folder: Path) -> None:
    """Put the directory that was to be replaced back, unless the new one is in its place."""
    if before.is_dir() and not folder.exists():
        os.replace(before, folder)
    shutil.rmtree(before, ignore_errors=True)
