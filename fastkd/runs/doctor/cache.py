"""Checks whether a cache of teacher outputs fits the configuration."""

from __future__ import annotations

from collections.abc import Iterator

from fastkd.corpora.sample import Sample
from fastkd.corpora.store.fingerprints import encoded_rows, row_hash
from fastkd.corpora.tasks import TASKS
from fastkd.runs.doctor.findings import Case, Check, Finding
from fastkd.trainer.teachers import CachedTeacher

ROWS = 1_000


def fits(case: Case) -> Iterator[Finding]:
    """Compares manifest, task, tokenizer, temperature, divergence, vocabulary and number of rows; unless
    ``case.fast`` is set, also the checksums of all files and the contents of the first rows.
    """
    folder = case.teacher.cache
    if folder is None:
        return
    try:
        teacher = CachedTeacher(folder)
        teacher.check(case.args, case.tokenizer)
    except ValueError as error:
        yield Finding("error", "cache", str(error))
        return
    if case.tokenizer is not None and case.args.task != "classification":
        tokens = len(case.tokenizer)
        if teacher.columns < tokens:
            yield Finding(
                "error",
                "cache_vocabulary",
                f"{folder} has {teacher.columns:,} columns and the tokenizer {tokens:,} tokens",
                "make the cache again with a teacher of this tokenizer",
            )
    if not case.args.packing:  # packed rows are known only after all data is read
        yield from _rows(case, teacher)


def _rows(case: Case, teacher: CachedTeacher) -> Iterator[Finding]:
    for part, sample in (("train", case.train), ("eval", case.held_out)):
        if sample is None:
            continue
        if part not in teacher.readers:
            yield Finding(
                "note",
                "cache_without_eval",
                f"{teacher.folder} has no part for the evaluation data, which is evaluated without the "
                "teacher",
                "run fastkd cache with eval_file set",
            )
            continue
        reader = teacher.readers[part]
        everything = len(sample.rows) == sample.total
        held = len(sample.kept) if everything else sample.total
        # Rows with nothing to learn are in neither the cache nor `sample.kept`. If only some rows were
        # encoded, the number of such rows is unknown: only a cache with more rows than the data is wrong.
        if len(reader) > held or (everything and len(reader) != held):
            yield Finding(
                "error",
                "cache_rows",
                f"{teacher.folder}/{part} holds {len(reader):,} rows and {sample.field} {held:,}",
                "make the cache again with this data and these settings",
            )
            continue
        if case.fast:
            continue
        try:
            reader.verify(f"checking the {part} cache")
        except ValueError as error:
            yield Finding("error", "cache_damaged", str(error))
            continue
        yield from _first_rows(case, teacher, part, sample)


def _first_rows(case: Case, teacher: CachedTeacher, part: str, sample: Sample) -> Iterator[Finding]:
    """Compares the order and the contents of the first rows with the hashes in the cache."""
    task = TASKS[case.args.task]
    some = task.prepared(sample.data.select(range(min(ROWS, sample.total))))
    made = [task.encode(row, sample.layout, case.tokenizer, case.args) for row in some]
    rows = [row for row in made if row is not None]
    for shard_number, shard in enumerate(teacher.readers[part].manifest.shards):
        hashes = teacher.readers[part].row_hashes(shard_number)
        for row, found in enumerate(encoded_rows(rows, shard.first, min(shard.last, len(rows)))):
            if hashes[row].tobytes() != row_hash(found):
                yield Finding(
                    "error",
                    "cache_order",
                    f"row {shard.first + row} (counted from 0) of {sample.field} is not the one that "
                    f"{teacher.folder}/{part} was made from: its order, contents or length limits have "
                    "changed",
                    "make the cache again, or put back the data and max_length that it was made with",
                )
                return
        if shard.last >= len(rows):
            return


CHECKS: tuple[Check, ...] = (fits,)
