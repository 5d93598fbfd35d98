"""Writing a directory shard by shard, so that a run that is killed loses the open shard and no more."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastkd.trainer.store.manifest import HEAD, NAME, File, Manifest, Shard, differences

logger = logging.getLogger(__name__)

# Writes a file at the path that it is given.
Write = Callable[[Path], None]

_BESIDE = ".writing-"


class Writer:
    """Begins a directory, or goes on with it.

    Args:
        folder: made if it is not there.
        kind, made_from: as for :class:`Manifest`.
        bounds: ``(first, last)`` row of each shard, one after the other.
        ending: of the shards' names.
        notes: of a new directory.

    Raises:
        ValueError: the directory was made from something else, or holds other files.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        made_from: dict[str, Any],
        bounds: Sequence[tuple[int, int]],
        ending: str,
        notes: dict[str, Any] | None = None,
    ) -> None:
        self.bounds, self.ending = list(bounds), ending
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / NAME).exists():
            self.manifest = Manifest.read(folder)
            changed = differences(self.manifest.made_from, made_from)
            if self.manifest.kind != kind:
                changed.insert(0, "kind")
            if changed:
                raise ValueError(
                    f"{folder} was begun with another {', '.join(changed)}: "
                    "give another output_dir, or delete this one"
                )
        else:
            if any(not path.name.startswith(".") for path in folder.iterdir()):
                raise ValueError(f"{folder} holds other files: give another output_dir")
            self.manifest = Manifest(folder, kind, made_from, bounds[-1][1], notes=notes or {})
            self.manifest.write()
        for left in folder.glob(f".{NAME}.*"):  # by a run that was killed
            left.unlink()
        for left in folder.glob(f"{_BESIDE}*"):
            shutil.rmtree(left)
        self._drop_damaged()

    def _drop_damaged(self) -> None:
        known = set(self.bounds)
        whole = [
            shard
            for shard in self.manifest.shards
            if (shard.first, shard.last) in known and self.manifest.is_whole(shard)
        ]
        if len(whole) < len(self.manifest.shards):
            logger.warning(
                "%d damaged shards of %s are made anew",
                len(self.manifest.shards) - len(whole),
                self.manifest.folder,
            )
            self.manifest.shards = whole
        if self.manifest.head is not None and not self.manifest.is_whole(self.manifest.head):
            self.manifest.head = None

    def missing(self) -> list[int]:
        """The shards that are still to be made, by number."""
        there = {shard.first for shard in self.manifest.shards}
        return [number for number, (first, _) in enumerate(self.bounds) if first not in there]

    def put(self, number: int, tokens: int, write: Write) -> None:
        """Add a shard."""
        file = self._place(f"{number:05d}{self.ending}", write)
        first, last = self.bounds[number]
        shard = Shard(file.name, file.bytes, file.sha256, first, last, tokens)
        self.manifest.shards = sorted([*self.manifest.shards, shard], key=lambda shard: shard.first)
        self.manifest.write()

    def put_head(self, write: Write) -> None:
        """Add the teacher's head."""
        self.manifest.head = self._place(HEAD, write)
        self.manifest.write()

    def _place(self, name: str, write: Write) -> File:
        """Whole or not at all: written beside, flushed to the disk, and renamed into place."""
        path = self.manifest.folder / name
        # A folder, for what writes the file may put temporary ones beside it.
        with TemporaryDirectory(prefix=_BESIDE, dir=path.parent) as place:
            beside = Path(place) / name
            write(beside)
            with beside.open("rb+") as file:
                os.fsync(file.fileno())
            made = File.of(beside)
            beside.replace(path)
        _sync_folder(path.parent)
        return made


def _sync_folder(folder: Path) -> None:
    """So that the manifest never names a file whose rename a power cut undid."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
