"""Directories that a run writes into: one run at a time, and errors that name the setting."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

LOCK = ".fastkd.lock"
# Errors of the file system for which another directory, or more room, is the remedy.
_ERRORS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG,
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO,
}  # fmt: skip
_FULL = {errno.ENOSPC, errno.EDQUOT}
# A write that failed without naming its reason failed for lack of room if no more than this is free.
_NOTHING_FREE = 2**20
# The directories that this process holds.
_held: set[str] = set()


@contextlib.contextmanager
def claimed(folder: Path, field: str = "output_dir") -> Iterator[None]:
    """Create a directory, and hold it until the block ends, so that no other run writes into it.

    The lock is the operating system's, which releases it when the process ends, however it ends. The process
    that holds a directory may claim it again. Errors of the disk within the block name ``field``, as with
    :func:`writing_to`.

    Raises:
        ValueError: another run holds the directory.
        OSError: the directory cannot be written.
    """
    name = os.path.realpath(folder)
    with writing_to(folder, field):
        if name in _held:
            yield
            return
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"another run is writing into {field} {str(folder)!r}: wait for its end, or give another "
                f"{field}"
            ) from None
        except NotImplementedError:  # a file system without locks
            logger.warning("%s cannot be locked: start no second run in it", folder)
        _held.add(name)
        try:
            yield
        finally:
            _held.discard(name)
            lock.release()


@contextlib.contextmanager
def writing_to(folder: Path, field: str = "output_dir") -> Iterator[None]:
    """Turn an error of the disk that holds ``folder`` into a sentence with the name of its setting.

    Raises:
        OSError: ``folder`` cannot be written, or its disk is full.
    """
    try:
        yield
    except Exception as error:
        if (sentence := _sentence(error, folder, field)) is None:
            raise
        raise OSError(sentence) from error


def require_writable(folder: Path, field: str = "output_dir") -> None:
    """Raise an ``OSError`` if a directory cannot be written. Nothing is created."""
    if (reason := unwritable(folder)) is not None:
        raise OSError(f"{field} {str(folder)!r} cannot be written ({reason}): give another {field}")


def unwritable(folder: Path) -> str | None:
    """Why a directory, which need not exist yet, cannot be written; None if it can. Nothing is created."""
    there = existing(folder)
    if not there.is_dir():
        return f"{there} is a file"
    return None if os.access(there, os.W_OK | os.X_OK) else f"{there} cannot be written"


def _sentence(error: Exception, folder: Path, field: str) -> str | None:
    """The sentence for an error of this directory's disk; None for any other error."""
    number = error.errno if isinstance(error, OSError) else None
    full = number in _FULL
    if number is not None:
        about = getattr(error, "filename", None)
        # A full disk that the error does not name may be another one, such as that of the data's cache.
        if about is None and full and _free(folder) >= _NOTHING_FREE:
            return None
        if number not in _ERRORS or (about is not None and not _concerns(folder, about)):
            return None
    elif not _is_failed_write(error):
        return None
    else:
        full = "os error 28" in str(error) or _free(folder) < _NOTHING_FREE
    if full:
        return (
            f"no space is left on the disk of {field} {str(folder)!r}: make room and start the same command "
            f"again, or give another {field}"
        )
    reason = str(error).split("\n")[0] if number is None else os.strerror(number)
    return f"{field} {str(folder)!r} cannot be written ({reason}): give another {field}"


def _is_failed_write(error: Exception) -> bool:
    """Whether an error without a number is that of a write: `torch` and `safetensors` raise such ones."""
    if type(error).__name__ == "SafetensorError":
        return "I/O error" in str(error) or "os error" in str(error)
    # `torch.save` names the function, the source file or the stream in which the write failed.
    signs = ("PytorchStreamWriter", "inline_container", "iostream error")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def _concerns(folder: Path, about: object) -> bool:
    """Whether a file is in the directory, or is one of the directories above it."""
    inside, whole = Path(os.path.abspath(os.fsdecode(str(about)))), Path(os.path.abspath(folder))
    return whole == inside or whole in inside.parents or inside in whole.parents


def _free(folder: Path) -> int:
    return shutil.disk_usage(existing(folder)).free


def existing(folder: Path) -> Path:
    """The directory, or the nearest one above it that exists."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return there
