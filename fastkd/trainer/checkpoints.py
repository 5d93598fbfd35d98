"""Checkpoints that count only when they are whole.

A process may be killed at any moment while it writes or deletes a checkpoint. So the last file that is
written into a checkpoint is a seal with the checksum of every other file. A run never resumes from a
checkpoint that has no seal or does not match it.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from fastkd.files import file_digest, write_json

SEAL = "sealed.json"
# The size and time of every file of the checkpoints that this process has found whole.
_whole: dict[Path, dict[str, tuple[int, int]]] = {}


def seal(folder: Path) -> None:
    """Mark a checkpoint as whole."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    write_json(folder / SEAL, {str(path.relative_to(folder)): file_digest(path) for path in files})


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint is sealed and its files have not changed since.

    A checkpoint can take minutes to read. One that was whole before is read again only if the size or the
    time of a file is another one.
    """
    try:
        sealed = json.loads((folder / SEAL).read_text("utf-8"))
        found = {name: (folder / name).stat() for name in (SEAL, *sealed)}
        now = {name: (state.st_size, state.st_mtime_ns) for name, state in found.items()}
        if _whole.get(folder.absolute()) == now:
            return True
        whole = all(file_digest(folder / name) == digest for name, digest in sealed.items())
    except (OSError, ValueError, TypeError, AttributeError):
        return False
    if whole:
        _whole[folder.absolute()] = now
    return whole


def require_whole(folder: Path) -> None:
    """Raise a ``ValueError`` unless the checkpoint that a person named is whole."""
    if not folder.is_dir():
        raise ValueError(
            f"resume_from_checkpoint: there is no checkpoint {str(folder)!r}: name one, or give true for the "
            "last whole one in output_dir"
        )
    if is_whole(folder):
        return
    if not (folder / SEAL).is_file():
        raise ValueError(
            f"resume_from_checkpoint: {str(folder)!r} has no {SEAL}, so fastkd did not write it to its end: "
            "name another checkpoint, or give this one as model, to start from its weights"
        )
    raise ValueError(
        f"resume_from_checkpoint: files of {str(folder)!r} are missing or have changed since it was written: "
        "name another checkpoint"
    )


def has_optimizer(folder: Path) -> bool:
    """Whether a checkpoint holds the optimizer's state, in a file or, if it was sharded, in a directory."""
    names = [path.name for path in folder.iterdir()]
    return any(name.startswith(("optimizer", "pytorch_optimizer", "global_step")) for name in names)


def chosen(folder: Path, resume: str | bool | None) -> str | None:
    """The checkpoint from which a run resumes.

    Args:
        folder: the run's ``output_dir``.
        resume: a checkpoint, True for the last whole one of ``folder``, or None or False for none.

    Raises:
        ValueError: there is none, or the named one is not whole.
    """
    if resume is None or resume is False:
        return None
    if resume is not True:
        require_whole(Path(resume))
        return str(resume)
    last = last_whole(folder)
    if last is None:
        raise ValueError(f"resume_from_checkpoint: there is no whole checkpoint in {str(folder)!r}")
    return str(last)


def advance(scheduler: Any, steps: int) -> None:
    """Bring a new schedule of the learning rate to the step at which the run resumes, unless it depends on
    more than the step.
    """
    if isinstance(scheduler, LambdaLR):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of steps that the optimizer has not made
            for _ in range(steps):
                scheduler.step()


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
