"""Checks whether answers follow their prompts in the rows as they will in use, and what chat templates do."""

from __future__ import annotations

from collections.abc import Iterator

from fastkd.corpora.conversations import conversation, prints_the_date
from fastkd.corpora.prompts import prompt_ids
from fastkd.corpora.sample import Sample
from fastkd.corpora.tasks.base import Row
from fastkd.corpora.tasks.forms import WITHOUT_PROMPT
from fastkd.corpora.turns import prompt_tokens
from fastkd.runs.doctor.findings import Case, Check, Finding, count

# Rows whose prompts are tokenized by themselves too.
COMPARED = 200


def boundaries(case: Case) -> Iterator[Finding]:
    """Prompts that, by themselves, do not end where the row's answer begins."""
    sample = case.train
    if case.args.task != "causal_lm" or sample is None or sample.layout in WITHOUT_PROMPT:
        return
    pairs = zip(sample.rows, sample.encoded, strict=True)
    rows = [(row, made["input_ids"]) for row, made in pairs if made is not None and not made["prompt_cut"]]
    compared = [(_asked(row, sample, case), ids) for row, ids in rows[:COMPARED]]
    moved = [(asked, ids) for asked, ids in compared if asked != ids[: len(asked)]]
    if len(moved) <= 0.01 * len(compared):
        return
    alone, within = moved[0]
    same = next(
        (i for i, (a, b) in enumerate(zip(alone, within, strict=False)) if a != b),
        min(len(alone), len(within)),
    )
    shown = [repr(case.tokenizer.decode(ids[max(0, same - 8) : same + 4])) for ids in (alone, within)]
    chat = sample.layout == ("messages",)
    yield Finding(
        "warning",
        "prompts_end_elsewhere",
        f"in {count(len(moved), len(compared))} of {sample.field} the prompt by itself does not end where "
        f"the answer begins, so the answers will follow {shown[0]} and are trained in {shown[1]}",
        "give answers the thinking that the chat template opens (reasoning_content), or set "
        "chat_template_kwargs so that it opens none, for example {enable_thinking: false}"
        if chat
        else "move a space from the end of the prompt to the beginning of the completion, or end the prompt "
        "with a line break",
    )


def _asked(row: Row, sample: Sample, case: Case) -> list[int]:
    """The tokens that a model is asked with: the prompt alone."""
    if sample.layout != ("messages",):
        prompt = row[sample.layout[0]]
        return prompt_ids(prompt, case.tokenizer) if isinstance(prompt, str) else []
    chat = conversation(row, case.tokenizer, case.args)
    answers = chat.answers()
    return prompt_tokens(chat.until(answers[-1])) if answers and answers[-1] else []


def rewritten(case: Case) -> Iterator[Finding]:
    """Conversations whose earlier answers the chat template rewrites."""
    for sample in (case.train, case.held_out):
        lost = 0 if sample is None else sum(row.get("rewritten", 0) for row in sample.kept)
        if sample is None or not lost:
            continue
        splits = case.args.rewritten_turns == "split"
        many = sum(row.get("rewritten", 0) > 0 for row in sample.kept)
        yield Finding(
            "note",
            "rewritten_turns",
            f"the chat template rewrites answers in {count(many, len(sample.rows))} of {sample.field}: "
            + (
                f"they become {sample.more:,} more rows" if splits else f"{lost:,} answers are not trained on"
            ),
            "set rewritten_turns: last to train on the last answers alone"
            if splits
            else "set rewritten_turns: split to make rows of them",
        )


def date(case: Case) -> Iterator[Finding]:
    """A chat template that prints the date, so that rows change from day to day."""
    sample = case.train
    if sample is None or sample.layout != ("messages",) or not prints_the_date(case.tokenizer):
        return
    yield Finding(
        "note",
        "template_date",
        "the chat template prints the date (strftime_now): the rows are others on every day, and a cache "
        "made today is refused tomorrow",
        "write a date into the template, or set it with chat_template_kwargs if the template has a name for "
        "it (date_string in Llama's)",
    )


CHECKS: tuple[Check, ...] = (boundaries, rewritten, date)
