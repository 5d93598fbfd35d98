"""Checks whether student, teacher and tokenizers use the same token numbers for the same tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastkd.corpora.labels import IGNORE_INDEX
from fastkd.corpora.listing import listed
from fastkd.corpora.spans import SPANS, TEACHER_SPANS, kinds
from fastkd.corpora.vocabulary import REMEDY, compare, examples, require_other_tokens, too_narrow
from fastkd.runs.doctor.findings import Case, Check, Finding, percent

TEXTS = 50
# A smaller share of the labels that is aligned with the teacher's is worth a warning.
ALIGNED = 0.9
SPECIALS = ("bos_token", "eos_token", "pad_token", "unk_token")


def columns(case: Case) -> Iterator[Finding]:
    """Compares the output widths of student and teacher with each other and with the tokenizer."""
    if case.args.task == "classification" or case.tokenizer is None:
        return
    if case.crossed is not None:
        yield from _own_columns(case)
        return
    tokens = len(case.tokenizer)
    widths = {
        side: config.get_text_config(decoder=True).vocab_size
        for side, config in (("student", case.student_config), ("teacher", case.teacher_config))
        if config is not None
    }
    narrow = too_narrow(tokens, widths)
    if narrow is not None:
        yield Finding(
            "error",
            "vocabulary_too_small",
            narrow,
            "choose a student and a teacher that were made for the same tokenizer",
        )
    elif len(set(widths.values())) == 2:
        yield Finding(
            "note",
            "vocabulary_padding",
            f"the student has {widths['student']:,} output columns, the teacher {widths['teacher']:,} and "
            f"the tokenizer {tokens:,} tokens: they differ by padding, and the loss covers the first "
            f"{min(widths.values()):,} columns",
        )


def _own_columns(case: Case) -> Iterator[Finding]:
    """Compares each side's output width with its own tokenizer."""
    for side, config, tokenizer in (
        ("student", case.student_config, case.tokenizer),
        ("teacher", case.teacher_config, case.crossed),
    ):
        width = None if config is None else config.get_text_config(decoder=True).vocab_size
        if width is not None and (narrow := too_narrow(len(tokenizer), {side: width})) is not None:
            yield Finding("error", "vocabulary_too_small", narrow, f"give the {side} its own tokenizer")


def alignment(case: Case) -> Iterator[Finding]:
    """How much of the data both tokenizers cut alike, with ``cross_tokenizer``."""
    if case.args.cross_tokenizer is None or case.tokenizer is None or case.teacher_config is None:
        return
    if case.crossed is None:
        try:
            require_other_tokens(case.tokenizer, case.teacher_tokenizer)
        except ValueError as error:
            found, _, remedy = str(error).rpartition(": ")
            yield Finding("error", "cross_tokenizer", found, remedy)
        return
    sample = case.train
    if sample is None or not sample.kept or not sample.needs_answer:
        return
    labels = aligned = spans = one = 0
    first = int(case.args.task == "causal_lm")  # the first label of a row has no position that predicts it
    for row in sample.kept:
        labels += sum(label != IGNORE_INDEX for label in row["labels"][first:])
        aligned += sum(span != IGNORE_INDEX for span in row[SPANS])
        single, split = kinds(row[SPANS], row[TEACHER_SPANS])
        spans += single + split
        one += single
    share = aligned / max(1, labels)
    text = (
        f"{percent(share)} of the student's {labels:,} labels in {sample.looked_at} of {sample.field} are "
        f"aligned with the teacher's, in {spans:,} spans, of which {percent(one / max(1, spans))} are one "
        "token on both sides"
    )
    if share >= ALIGNED:
        yield Finding("note", "alignment", text)
    else:
        yield Finding(
            "warning",
            "alignment",
            f"only {text}; the rest is learned from the labels alone",
            "raise max_length if one side is cut before the other, and give both tokenizers the same "
            "normalisation (one may write small letters alone) and chat templates that write answers alike",
        )


def contents(case: Case) -> Iterator[Finding]:
    """Token numbers that mean different tokens to student and teacher, and tokens that one of them lacks."""
    ours, theirs = case.tokenizer, case.teacher_tokenizer
    if ours is None or theirs is None or case.crossed is not None:
        return
    found = compare(ours, theirs)
    if found.trouble is not None:
        yield Finding("error", "vocabulary_contents", found.trouble, REMEDY)
        return
    if found.renamed:
        yield Finding(
            "note",
            "special_tokens_renamed",
            f"{len(found.renamed):,} special tokens have another name on the teacher's side: "
            f"{examples(found.renamed)}",
            "keep texts with these tokens out of the data",
        )
    for side, only in (("student", found.student_only), ("teacher", found.teacher_only)):
        if only:
            yield Finding(
                "warning" if side == "student" else "note",
                f"tokens_of_{side}_only",
                f"{len(only):,} tokens are in the {side}'s vocabulary only: {listed(only)}",
                "keep texts with these tokens out of the data: the teacher never learned them"
                if side == "student"
                else "if the teacher splits texts into these tokens, set cross_tokenizer: spans",
            )


def splitting(case: Case) -> Iterator[Finding]:
    """Tokenizers of one vocabulary that split texts differently."""
    ours, theirs = case.tokenizer, case.teacher_tokenizer
    if ours is None or theirs is None or case.train is None or ours.get_vocab() != theirs.get_vocab():
        return
    texts = [t for row in case.train.rows[:TEXTS] for t in row.values() if isinstance(t, str) and t]
    if not texts:
        return
    for special, name, what in (
        (False, "splitting", "begins with"),
        (True, "opening", "begins, special tokens included, with"),
    ):
        other = [t for t in texts if _ids(ours, t, special) != _ids(theirs, t, special)]
        if other:
            a, b = (_tokens(tokenizer, other[0], special) for tokenizer in (ours, theirs))
            yield Finding(
                "warning",
                f"tokenizers_{name}",
                f"the teacher's tokenizer splits {len(other)} of {len(texts)} texts differently from the "
                f"student's: the first {what} {b} instead of {a}",
                "give the student the teacher's tokenizer files: the teacher receives texts as the student's "
                "tokenizer splits them",
            )
            return  # with special tokens, the same texts would be reported again


def _ids(tokenizer: Any, text: str, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def _tokens(tokenizer: Any, text: str, special: bool, most: int = 5) -> str:
    return " ".join(map(str, tokenizer.convert_ids_to_tokens(_ids(tokenizer, text, special)[:most])))


def specials(case: Case) -> Iterator[Finding]:
    """Compares the special tokens of both tokenizers: beginning, end, padding and unknown."""
    ours, theirs = case.tokenizer, case.teacher_tokenizer
    if ours is None or theirs is None or case.crossed is not None:
        return
    for name in SPECIALS:
        mine, other = getattr(ours, name, None), getattr(theirs, name, None)
        if mine != other:
            ends = name == "eos_token"
            yield Finding(
                "warning" if ends or name == "bos_token" else "note",
                f"special_{name}",
                f"{name} is {mine!r} in the student's tokenizer and {other!r} in the teacher's",
                "set it in the student's tokenizer_config.json to the teacher's: texts end with it"
                if ends
                else "",
            )


def against_models(case: Case) -> Iterator[Finding]:
    """Compares the tokenizer's end and padding tokens with those of the models' configurations."""
    if case.tokenizer is None or case.args.task == "classification":
        return
    named = [("student", case.args.model, case.student_config, case.tokenizer)]
    if case.teacher.is_model:
        own = case.teacher_tokenizer or case.tokenizer
        named.append(("teacher", case.args.teacher, case.teacher_config, own))
    for side, name, config, tokenizer in named:
        if config is None or name is None:
            continue
        eos = tokenizer.eos_token_id
        generation = case.generation_config(name)
        for where, source in (("config.json", config), ("generation_config.json", generation)):
            stops = getattr(source, "eos_token_id", None)
            stops = stops if isinstance(stops, list) else [stops]
            if stops != [None] and eos is not None and eos not in stops:
                yield Finding(
                    "warning",
                    f"{side}_eos",
                    f"texts end with the tokenizer's {tokenizer.eos_token!r} ({eos}), and the {side}'s "
                    f"{where} stops at {', '.join(map(str, stops))}: its answers would not end",
                    f"set eos_token_id in the {side}'s {where} to {eos}",
                )
                break
        pad = getattr(config, "pad_token_id", None)
        if pad is not None and tokenizer.pad_token_id is not None and pad != tokenizer.pad_token_id:
            yield Finding(
                "note",
                f"{side}_pad",
                f"the tokenizer pads with {tokenizer.pad_token_id} and the {side}'s config.json says {pad}: "
                "padding is masked either way",
            )
        if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
            yield Finding(
                "error",
                f"{side}_decoder_start",
                f"the {side}'s config.json has no decoder_start_token_id, which every target begins with",
                f"set decoder_start_token_id in the {side}'s config.json",
            )


CHECKS: tuple[Check, ...] = (columns, alignment, contents, splitting, specials, against_models)
