"""Checks whether a cache of teacher outputs fits the configuration."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastkd.corpora.conversations import why_texts_change
from fastkd.corpora.sample import Sample
from fastkd.corpora.store.fingerprints import places, survey
from fastkd.corpora.tasks import TASKS
from fastkd.runs.doctor.findings import Case, Check, Finding, count
from fastkd.trainer.teachers import CachedTeacher


def fits(case: Case) -> Iterator[Finding]:
    """Compares manifest, task, tokenizer, temperature, divergence and vocabulary; unless ``case.fast`` is
    set, also the checksums of all files and the rows.
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
        if case.fast:
            continue
        try:
            reader.verify(f"checking the {part} cache")
        except ValueError as error:
            yield Finding("error", "cache_damaged", str(error))
            continue
        yield from _lookup(case, teacher, part, sample)


def _lookup(case: Case, teacher: CachedTeacher, part: str, sample: Sample) -> Iterator[Finding]:
    """Looks up the rows of the sample in the cache."""
    reader = teacher.readers[part]
    rows = sample.kept
    hashes, _ = survey(rows, TASKS[case.args.task])
    missing = np.flatnonzero(places(hashes, reader.all_row_hashes()) < 0)
    if len(missing):
        yield Finding(
            "error",
            "cache_rows",
            f"{count(len(missing), len(rows))} looked at of {sample.field} are not in "
            f"{teacher.folder}/{part}: their text or the length limits have changed"
            + why_texts_change(case.tokenizer),
            "make the cache again, or put back the data and max_length that it was made with",
        )


CHECKS: tuple[Check, ...] = (fits,)
