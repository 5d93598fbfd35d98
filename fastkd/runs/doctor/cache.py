"""Checks whether a cache of teacher outputs fits the configuration."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastkd.corpora.conversations import why_texts_change
from fastkd.corpora.labels import REGRESSION
from fastkd.corpora.sample import Sample
from fastkd.corpora.store.fingerprints import places, survey
from fastkd.corpora.tasks import TASKS
from fastkd.runs.cache_contents import is_small, judged, measure, measured_mass, read_at, stated_mass
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
    yield from _held(case, teacher)


def _held(case: Case, teacher: CachedTeacher) -> Iterator[Finding]:
    """A ``topk`` cache whose entries hold too little of the teacher's probability."""
    reader = teacher.readers["train"]
    if teacher.kind != "topk":
        return
    if (found := stated_mass(reader.manifest, read_at(case.args))) is None:
        try:
            if case.fast:
                return
            reader.verify()
        except ValueError:  # reported with the rows
            return
        found = measured_mass(reader)
    if (advice := judged(case.args, *found, str(teacher.folder))) is not None:
        yield Finding("warning", "cache_holds_little", advice.found, advice.remedy)


def would_hold(case: Case) -> Iterator[Finding]:
    """A teacher of which a cache would hold little, measured on a few rows where the teacher is small."""
    sample = case.train
    if case.fast or sample is None or not sample.kept or not sample.needs_answer or case.troubles:
        return
    if case.args.problem_type == REGRESSION or case.args.cache_kind != "topk" or not is_small(case.args):
        return
    try:
        measured = measure(case.args, sample.rows_of_batches(case.args), case.tokenizer, ("topk", "sampled"))
    except (ValueError, OSError, RuntimeError):  # reported with the teacher's quality
        return
    if not measured:
        return
    temperature = read_at(case.args)
    mass = measured["topk"].held.mass(temperature)
    where = f"on {measured['topk'].rows} rows of {sample.field}"
    if mass is None or (advice := judged(case.args, mass, temperature, where)) is None:
        return
    sampled = measured["sampled"]
    yield Finding(
        "note",
        "cache_would_hold_little",
        f"{advice.found}; of {case.args.cache_samples} draws {sampled.held.distinct:.0f} are distinct, "
        f"{sampled.bytes_per_token:.0f} bytes per token beside {measured['topk'].bytes_per_token:.0f}",
        f"if you cache this teacher, {advice.remedy}",
    )


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


CHECKS: tuple[Check, ...] = (fits, would_hold)
