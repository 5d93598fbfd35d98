"""Checks what the student learns from the rows: ends of sequences, masks, cuts, repetitions."""

from __future__ import annotations

import copy
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from fastkd.corpora.labels import is_masked
from fastkd.corpora.sample import Sample
from fastkd.corpora.tasks import IGNORE_INDEX, TASKS
from fastkd.corpora.tasks.base import Row, unread_phrase
from fastkd.corpora.tasks.forms import WITHOUT_PROMPT
from fastkd.runs.doctor.findings import Case, Check, Finding, count, percent
from fastkd.trainer.crossing import teachers_rows
from fastkd.trainer.row_limits import extent, problems, trained_positions, windows

# Rows that are compared as text: many, since comparing text is fast.
COMPARED = 100_000
UNKNOWN_SHARE = 0.01
# A length limit above any row, so that rows are encoded whole.
ALL = 2**31 - 1


def _samples(case: Case) -> Iterator[Sample]:
    for sample in (case.train, case.held_out):
        if sample is not None:
            yield sample


def no_data(case: Case) -> Iterator[Finding]:
    if case.train is None and case.args.train_file is None and case.args.dataset is None:
        yield Finding(
            "error",
            "no_data",
            "there is no training data",
            "set train_file to a txt, json, jsonl, csv, tsv or parquet file, or dataset to one of the hub",
        )


def unreadable(case: Case) -> Iterator[Finding]:
    """Rows that the task refuses."""
    for sample in _samples(case):
        if sample.error is not None:
            yield Finding("error", "row_refused", sample.error)


def empty(case: Case) -> Iterator[Finding]:
    """Rows without text, and rows with text that leave nothing to learn."""
    for sample in _samples(case):
        if sample.error is not None:
            continue
        lost = [row for row, made in zip(sample.rows, sample.encoded, strict=True) if made is None]
        blank = sum(any(row[name] in (None, "", []) for name in sample.layout) for row in lost)
        if blank:
            yield Finding(
                "error" if blank == len(sample.rows) else "warning",
                "empty_rows",
                f"{count(blank, len(sample.rows))} of {sample.field} are empty and are left out",
                "remove them, or name the right columns with column_mapping",
            )
        masked = len(lost) - blank
        if case.args.task == "classification":
            masked += sum(is_masked(row["labels"]) for row in sample.kept)
        if masked:
            yield Finding(
                "error" if masked == len(sample.rows) else "warning",
                "labels_masked",
                f"{count(masked, len(sample.rows))} of {sample.field} have no label to learn "
                "(a single token, a conversation without an assistant, a missing class)",
                "give prompts a completion, conversations an assistant turn, texts a label",
            )


def unread(case: Case) -> Iterator[Finding]:
    """Columns that nobody reads."""
    for sample in _samples(case):
        if sample.unread:
            yield Finding(
                "note",
                "unread_columns",
                f"{sample.field} is read as {'+'.join(sample.layout)}; {unread_phrase(sample.unread)}",
                "remove them, or name the right columns with column_mapping",
            )


def never_ends(case: Case) -> Iterator[Finding]:
    """Labels without an end of sequence: the student would never learn to stop."""
    if case.args.task == "classification" or case.train is None or not case.train.kept:
        return
    if not case.train.needs_answer:
        return
    eos = case.tokenizer.eos_token_id
    if eos is None:
        yield Finding(
            "warning",
            "no_eos",
            "the tokenizer has no eos_token, so no label says where to stop",
            "set eos_token in the student's tokenizer_config.json",
        )
        return
    rows = case.train.kept
    ended = sum(eos in row["labels"] for row in rows)
    if ended < len(rows) / 2:
        cut = sum(row["cut"] for row in rows)
        yield Finding(
            "warning",
            "eos_missing",
            f"{count(ended, len(rows))} have the end of sequence among their labels"
            + (f", since {cut:,} are cut" if cut else "")
            + ": the student would hardly learn to stop",
            "raise max_length" if case.args.task == "causal_lm" else "raise max_target_length",
        )


def window(case: Case) -> Iterator[Finding]:
    """Rows that do not fit ``max_length``, and whether their prompt or their answer is cut."""
    args = case.args
    if args.packing:
        return
    limitless = copy.copy(args)
    limitless.max_length = limitless.max_target_length = ALL
    task = TASKS[args.task]
    for sample in _samples(case):
        if not (cut := sum(row["cut"] for row in sample.kept)):
            continue
        if args.task != "causal_lm" or sample.layout in WITHOUT_PROMPT:
            wholes = [_whole(task, row, sample, limitless, case) for row in sample.rows]
            longest = max(len(row["input_ids"]) for row in wholes)
            limits = f"the longest has {longest:,} tokens, max_length is {args.max_length:,}"
            remedy = "raise max_length"
            if args.task == "seq2seq":
                target = max(len(row["labels"]) for row in wholes)
                limits += f"; the longest target {target:,}, max_target_length {args.max_target_length:,}"
                remedy = "raise max_length (source) or max_target_length (target)"
            elif args.task == "causal_lm":
                remedy += ", or set packing: true"
            yield Finding(
                _cut_severity(cut, sample),
                "rows_cut",
                f"{count(cut, len(sample.rows))} of {sample.field} do not fit the window and are cut "
                f"({limits})",
                remedy,
            )
            continue
        prompts = answers = longest = 0
        for row, made in zip(sample.rows, sample.encoded, strict=True):
            if made is None or not made["cut"]:
                continue
            whole = _whole(task, row, sample, limitless, case)
            said, kept = (sum(label != IGNORE_INDEX for label in row["labels"]) for row in (whole, made))
            prompts += made["prompt_cut"]
            answers += kept < said
            longest = max(longest, len(whole["input_ids"]))
        parts = [(prompts, "lose the beginning of their prompt"), (answers, "lose the end of their answer")]
        found = " and ".join(f"{count(n, len(sample.rows))} {what}" for n, what in parts if n)
        yield Finding(
            "warning",
            "prompts_fill_the_window",
            f"of {sample.field}, {found} (the longest has {longest:,} tokens, max_length is "
            f"{args.max_length:,})",
            f"raise max_length to {longest}",
        )


def _cut_severity(cut: int, sample: Sample) -> Any:
    return "warning" if cut > 0.01 * len(sample.rows) else "note"


def _whole(task: Any, row: Row, sample: Sample, limitless: Any, case: Case) -> Row:
    made = task.read(row, sample.layout, case.tokenizer, limitless, sample.needs_answer)
    return made[-1] if made else {"input_ids": [], "labels": []}


def limits(case: Case) -> Iterator[Finding]:
    """Rows with more tokens than a model has positions, or with tokens that it does not know."""
    args, task = case.args, TASKS[case.args.task]
    sides = (
        ("student", case.student_config, case.student_without_weights),
        ("teacher", case.teacher_config, case.teacher_without_weights),
    )
    most = dict.fromkeys(("student", "teacher"), 0)
    for sample in _samples(case):
        for side, _, model in sides:
            own = case.crossed if side == "teacher" else None  # a tokenizer of the teacher's own
            found = extent(sample.kept if own is None else teachers_rows(sample.kept), task)
            if found is None:
                continue
            if args.packing:
                found.longest = min(found.longest, args.max_length)
            most[side] = max(most[side], found.longest)
            tokenizer = case.tokenizer if own is None else own
            for problem in () if model is None else problems(found, side, model, task, tokenizer):
                what, _, remedy = problem.rpartition(": ")
                name = "positions" if "positions:" in problem else "tokens"
                yield Finding("error", f"{side}_{name}", f"{sample.field} {what}", remedy)
    for side, config, model in sides:
        longest, trained = most[side], None if config is None else trained_positions(config)
        if trained is None:
            continue
        if longest > trained:
            if model is None or windows(model)[0] is None:
                yield Finding(
                    "warning",
                    f"{side}_positions",
                    f"rows have up to {longest:,} tokens and the {side} has {trained:,} positions, beyond "
                    "which it was never trained",
                    f"set max_length: {trained}",
                )
        elif args.max_length > trained:
            yield Finding(
                "note",
                f"{side}_window",
                f"max_length is {args.max_length:,} and the {side} has {trained:,} positions; "
                f"the longest row looked at has {longest:,} tokens",
                f"set max_length: {trained}",
            )


def repeated(case: Case) -> Iterator[Finding]:
    """Rows that occur twice in the training data, or in both the training and the held-out data."""
    if case.train is None:
        return
    train = _hashes(case.train)
    counts = Counter(train)
    again = len(train) - len(counts)
    if again > 0.01 * len(train):
        yield Finding(
            "note",
            "duplicates",
            f"{count(again, len(train))} looked at of train_file repeat another one",
            "remove them, unless they are meant to count more",
        )
    if case.held_out is None:
        return
    held = _hashes(case.held_out)
    leaked = [i for i, digest in enumerate(held) if digest in counts]
    if leaked:
        example = next(iter(case.held_out.data[leaked[0]].values()))
        yield Finding(
            "warning",
            "leak",
            f"{count(len(leaked), len(held))} of eval_file are in the {len(train):,} rows looked at of "
            f"train_file too, for example {str(example)[:60]!r}: the evaluation would look too good",
            "take them out of one of the two",
        )


def _hashes(sample: Sample) -> list[bytes]:
    some = sample.data.select(range(min(COMPARED, sample.total))).select_columns(list(sample.layout))
    columns = some[:]
    rows = zip(*(columns[name] for name in sample.layout), strict=True)
    return [hashlib.blake2b(json.dumps(row).encode(), digest_size=16).digest() for row in rows]


def unknown(case: Case) -> Iterator[Finding]:
    """Texts that the tokenizer cannot represent without its unknown token."""
    if case.train is None or case.tokenizer is None or case.tokenizer.unk_token_id is None:
        return
    # An unknown token that has another role too (GPT-2's is also its end) does not indicate unknown text.
    if case.tokenizer.unk_token_id in (case.tokenizer.eos_token_id, case.tokenizer.pad_token_id):
        return
    total = sum(len(row["input_ids"]) for row in case.train.kept)
    lost = sum(row["input_ids"].count(case.tokenizer.unk_token_id) for row in case.train.kept)
    if lost > UNKNOWN_SHARE * total:
        yield Finding(
            "warning",
            "unknown_tokens",
            f"{percent(lost / total)} of the tokens in train_file are {case.tokenizer.unk_token}, "
            "which the tokenizer uses for text that it does not know",
            "choose a model whose tokenizer was made for this language",
        )


def packed_prompts(case: Case) -> Iterator[Finding]:
    if case.args.packing and case.train is not None and case.train.layout not in WITHOUT_PROMPT:
        said = sum(sum(x != IGNORE_INDEX for x in row["labels"]) for row in case.train.kept)
        total = sum(len(row["labels"]) for row in case.train.kept)
        yield Finding(
            "note",
            "packed_prompts",
            "packing cuts the rows at every max_length tokens, between prompt and answer too; "
            f"{100 * said / max(total, 1):.0f} % of the tokens have labels",
            "set packing: false if answers must see their whole prompt",
        )


CHECKS: tuple[Check, ...] = (
    no_data,
    unreadable,
    empty,
    never_ends,
    window,
    limits,
    unread,
    repeated,
    unknown,
    packed_prompts,
)
