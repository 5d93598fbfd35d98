"""The parts of a generated set that do not depend on what was generated: shards, and digests of the input."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from fastkd.corpora.local_files import files_of
from fastkd.corpora.store import Manifest, Writer
from fastkd.corpora.store.fingerprints import ROW_HASH, weights_digest
from fastkd.corpora.store.manifest import GENERATED
from fastkd.files import file_digest
from fastkd.runs import report
from fastkd.trainer.config import DistillationConfig

SHARD_ROWS = 256
# The column that keeps the data's own answer or label.
REFERENCE = "reference"
# Key in the schema of a shard; its value holds the hash of each input row and counts of the answers.
_METADATA = b"fastkd"


def row_hash(row: dict[str, Any]) -> str:
    """A hash of a raw row."""
    text = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=ROW_HASH).hexdigest()


def source(args: DistillationConfig) -> dict[str, Any]:
    """The data that a set was made from, with the digests of its files."""
    if args.train_file is None:
        return {"dataset": args.dataset, "split": args.train_split}
    is_set = isinstance(args.train_file, str) and Path(args.train_file).expanduser().is_dir()
    files = [] if is_set else files_of("train_file", args.train_file)
    return {
        "train_file": args.train_file,
        "sha256": {path.name: file_digest(path) for path in files},
    }


@dataclass(frozen=True)
class MadeBy:
    """A teacher, as the manifest of a set names it.

    Attributes:
        name: for the reader.
        digests: entries by which a resumed run knows it again.
    """

    name: str
    digests: dict[str, str]

    @classmethod
    def model(cls, teacher: PreTrainedModel, args: DistillationConfig) -> MadeBy:
        """A model on this machine."""
        weights = weights_digest(teacher, "hashing the teacher")
        return cls(args.teacher or str(teacher.name_or_path), {"teacher_weights": weights})


def seed_of(seed: int, first: int) -> int:
    """The seed of the shard that begins with this row, so that a resumed run draws what an uninterrupted one
    would have.
    """
    return int.from_bytes(hashlib.blake2b(f"{seed} {first}".encode(), digest_size=4).digest(), "little")


def refuse_columns(rows: Dataset, *columns: str) -> None:
    """Raise a ``ValueError`` if the data has a column that the set adds."""
    for name in columns:
        if name in rows.column_names:
            raise ValueError(
                f"train_file has a column {name!r} already, which fastkd generate writes: rename or remove it"
            )


def parquet(rows: Dataset, counts: dict[str, Any]) -> Callable[[Path], None]:
    """A function that writes a shard."""
    table = rows.data.table
    metadata = {**(table.schema.metadata or {}), _METADATA: json.dumps(counts).encode()}
    made = table.replace_schema_metadata(metadata)
    return lambda path: pq.write_table(made, path)


def write_set(
    folder: Path,
    made_from: dict[str, Any],
    hashes: Sequence[str],
    make: Callable[[int, int, Any], tuple[Dataset, int, dict[str, Any]]],
    args: DistillationConfig,
    made_by: MadeBy,
    title: str,
    shard_rows: int,
) -> Manifest:
    """Write the shards of a set that are not there yet, with a progress bar.

    Args:
        folder: the set's directory; one that was begun is resumed.
        made_from: the settings that decide the set's content, besides the teacher's weights and the data.
        hashes: the hash of each input row.
        make: a function of a shard's first row, the row after its last, and the bar, which it advances. It
            returns the rows, their number of tokens, and counts.
        args: the configuration.
        made_by: the teacher that makes the set.
        title: of the bar.
        shard_rows: number of rows in a shard.

    Raises:
        ValueError: a directory that was begun with other settings.
    """
    digests = {
        **made_by.digests,
        "data": hashlib.sha256("".join(hashes).encode()).hexdigest(),
    }
    notes = {
        "teacher": made_by.name,
        "source": source(args),
        "versions": report.versions(),
    }
    bounds = [(i, min(i + shard_rows, len(hashes))) for i in range(0, len(hashes), shard_rows)]
    writer = Writer(folder, GENERATED, made_from | digests, bounds, ".parquet", notes)
    missing = writer.missing()
    there = len(hashes) - sum(bounds[number][1] - bounds[number][0] for number in missing)
    with tqdm(total=len(hashes), initial=there, desc=title, unit="row", disable=args.disable_tqdm) as bar:
        for number in missing:
            first, last = bounds[number]
            made, tokens, counts = make(first, last, bar)
            writer.put(number, tokens, parquet(made, {**counts, "input_rows": hashes[first:last]}))
    return writer.manifest


def counted(manifest: Manifest, names: Sequence[str]) -> Manifest:
    """The manifest with counts over all shards, so that they do not depend on where a run was stopped."""
    totals = dict.fromkeys(names, 0)
    for shard in manifest.shards:
        counts = json.loads(pq.read_schema(manifest.folder / shard.name).metadata[_METADATA])
        for name in totals:
            totals[name] += counts[name]
    if {**manifest.notes, **totals} != manifest.notes:
        manifest.notes |= totals
        manifest.write()
    return manifest
