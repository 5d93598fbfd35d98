"""``manifest.json``: the contents of a directory, the inputs that made it, and every file's checksum."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

import fastkd
from fastkd import files

FORMAT = 1
NAME = "manifest.json"
CACHES = ("topk", "sampled", "hidden")
GENERATED = "generated"
# Longest value, in characters, that a message about differing settings shows.
READABLE = 40
HEAD = "head.safetensors"
_SHARD_NAME = re.compile(r"\d{5,9}\.(safetensors|parquet)")


@dataclass(frozen=True)
class File:
    """A file's size in bytes and SHA-256."""

    name: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> File:
        return cls(path.name, path.stat().st_size, files.file_digest(path))


@dataclass(frozen=True)
class Shard(File):
    """A file with the rows from ``first`` up to, but not including, ``last``, and their number of tokens."""

    first: int
    last: int
    tokens: int


@dataclass
class Manifest:
    """A directory's contents.

    Attributes:
        kind: ``topk``, ``sampled``, ``hidden`` or ``generated``.
        made_from: everything that decides the contents, by name; a run with any other value must not resume
            the directory.
        rows: number of rows in all shards once the directory is complete.
        shards: the shards that have been written, in order.
        head: the file of the teacher's head, in a ``hidden`` cache.
        notes: further facts that do not decide the contents, such as the teacher's name and counts.
    """

    folder: Path
    kind: str
    made_from: dict[str, Any]
    rows: int
    shards: list[Shard] = field(default_factory=list)
    head: File | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    fastkd: str = fastkd.__version__

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Size of all files except the manifest."""
        return sum(file.bytes for file in self.files())

    @property
    def complete(self) -> bool:
        return sum(shard.last - shard.first for shard in self.shards) == self.rows

    def files(self) -> list[File]:
        return [*self.shards, *([self.head] if self.head else [])]

    def write(self) -> None:
        content = {
            "format": FORMAT,
            "fastkd": self.fastkd,
            "kind": self.kind,
            "made_from": self.made_from,
            "rows": self.rows,
            "tokens": self.tokens,
            "bytes_per_token": round(self.bytes / self.tokens, 3) if self.tokens else None,
            "notes": self.notes,
            "head": None if self.head is None else asdict(self.head),
            "shards": [asdict(shard) for shard in self.shards],
        }
        content = json.loads(json.dumps(content))
        files.write_json(self.folder / NAME, {**content, "digest": _digest(content)})

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a directory. The files that it names are not read yet.

        Raises:
            ValueError: no manifest, another format, or a manifest that was altered or names a file that
                cannot be a shard or head in this directory.
        """
        path = folder / NAME
        try:
            content = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise ValueError(f"there is no {NAME} in {folder}") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read ({error}): make {folder} again") from error
        if not isinstance(content, dict) or "format" not in content:
            raise ValueError(f"{path} is not a manifest of fastkd")
        if content["format"] != FORMAT:
            raise ValueError(
                f"{path} is of format {content['format']!r}, written by fastkd {content.get('fastkd')}, "
                f"and this version ({fastkd.__version__}) reads format {FORMAT}: make {folder} again"
            )
        if content.pop("digest", None) != _digest(content):
            raise ValueError(f"{path} was altered after it was written: make {folder} again")
        try:
            made = cls(
                folder,
                content["kind"],
                dict(content["made_from"]),
                content["rows"],
                [Shard(**shard) for shard in content["shards"]],
                None if content["head"] is None else File(**content["head"]),
                dict(content["notes"]),
                content["fastkd"],
            )
            made._check()
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a manifest of fastkd: {error}") from error
        return made

    def _check(self) -> None:
        """Validate that the kind is known, names stay inside the directory and rows follow one another."""
        path = self.folder / NAME
        if self.kind not in (*CACHES, GENERATED):
            raise ValueError(f"{path} is of the unknown kind {self.kind!r}")
        for file in self.files():
            known = file.name == HEAD if file is self.head else _SHARD_NAME.fullmatch(file.name)
            if not known or (self.folder / file.name).resolve().parent != self.folder.resolve():
                raise ValueError(f"{path} names {file.name!r}, which is not a file of this directory")
        last = -1
        for shard in self.shards:
            if not max(last, 0) <= shard.first < shard.last <= self.rows or shard.tokens < 0:
                raise ValueError(
                    f"{path} has rows {shard.first} to {shard.last} out of order or out of range"
                )
            last = shard.last

    def require_complete(self, command: str) -> None:
        """Raise a ``ValueError`` unless the shards have every row."""
        if not self.complete:
            done = sum(shard.last - shard.first for shard in self.shards)
            raise ValueError(
                f"{self.folder} holds {done} of {self.rows} rows: run the same fastkd {command} again, "
                "it resumes where it stopped"
            )

    def is_whole(self, file: File) -> bool:
        """Whether a file exists and has not changed since it was written."""
        path = self.folder / file.name
        try:
            return path.stat().st_size == file.bytes and files.file_digest(path) == file.sha256
        except OSError:
            return False

    def verify(self, title: str | None = None) -> None:
        """Read every file once and compare it with its checksum.

        Args:
            title: title of a progress bar; None shows none.

        Raises:
            ValueError: a file that is missing, cut or altered.
        """
        with tqdm(
            total=self.bytes,
            desc=title,
            unit="B",
            unit_scale=True,
            delay=2,
            disable=title is None,
        ) as bar:
            for file in self.files():
                if not self.is_whole(file):
                    raise ValueError(
                        f"{self.folder / file.name} is missing, cut or altered: run the command that made "
                        f"{self.folder} again, it replaces what is damaged"
                    )
                bar.update(file.bytes)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The names whose values differ, each with both values where they are short enough to read."""
    now = json.loads(json.dumps(now))
    return [
        _difference(name, before.get(name), now.get(name))
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def _difference(name: str, before: Any, now: Any) -> str:
    shown = ["unset" if value is None else str(value) for value in (before, now)]
    return f"{name} ({shown[0]}, now {shown[1]})" if max(map(len, shown)) <= READABLE else name
