"""Writes a directory shard by shard, so that a killed run loses only the shard that it was writing."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastkd.corpora.store.manifest import HEAD, NAME, File, Manifest, Shard, differences
from fastkd.directories import writing_to

logger = logging.getLogger(__name__)

# A function that writes a file at the given path.
Write = Callable[[Path], None]

_BESIDE = ".writing-"


class Writer:
    """Starts a directory, or resumes it.

    Args:
        folder: created if it does not exist.
        kind, made_from: as for :class:`Manifest`.
        bounds: ``(first, last)`` row of each shard, in order.
        ending: suffix of the shards' file names.
        notes: the manifest's notes, for a new directory.
        why_data_changes: end of the sentence that refuses a directory because its data was another.

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
        why_data_changes: str = "",
    ) -> None:
        self.bounds, self.ending = list(bounds), ending
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / NAME).exists():
            self.manifest = Manifest.read(folder)
            changed = differences(self.manifest.made_from, made_from)
            if self.manifest.kind != kind:
                changed.insert(0, "kind")
            if changed:
                why = why_data_changes if "data" in changed else ""
                raise ValueError(
                    f"{folder} was begun with other settings, {', '.join(changed)}{why}: "
                    "give another output_dir, or delete this one"
                )
        else:
            if any(not path.name.startswith(".") for path in folder.iterdir()):
                raise ValueError(f"{folder} holds other files: give another output_dir")
            self.manifest = Manifest(folder, kind, made_from, bounds[-1][1], notes=notes or {})
            self.manifest.write()
        for left in folder.glob(f".{NAME}.*"):  # left by a killed run
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
                "%d damaged shards of %s are made again",
                len(self.manifest.shards) - len(whole),
                self.manifest.folder,
            )
            self.manifest.shards = whole
        if self.manifest.head is not None and not self.manifest.is_whole(self.manifest.head):
            self.manifest.head = None

    def missing(self) -> list[int]:
        """The numbers of the shards that still have to be written."""
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

    def note(self, name: str, value: Any) -> None:
        """Add a fact to the manifest's notes."""
        if self.manifest.notes.get(name) != value:
            self.manifest.notes[name] = value
            self.manifest.write()

    def _place(self, name: str, write: Write) -> File:
        """Write a file whole or not at all: in a temporary folder, flushed to the disk, then renamed."""
        path = self.manifest.folder / name
        # A folder and not a file, because `write` may create temporary files beside its target.
        with TemporaryDirectory(prefix=_BESIDE, dir=path.parent) as place:
            beside = Path(place) / name
            # Before the folder is removed, since that makes room on a disk that is full.
            with writing_to(path.parent):
                write(beside)
                with beside.open("rb+") as file:
                    os.fsync(file.fileno())
            made = File.of(beside)
            beside.replace(path)
        _sync_folder(path.parent)
        return made


def _sync_folder(folder: Path) -> None:
    """Flush a folder, so that the manifest never names a file whose rename was undone by a power cut."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
