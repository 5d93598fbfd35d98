"""Runs whose teacher has another tokenizer: what they refuse, and the teacher's tokens of an answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from fastkd.corpora.shared_tokens import SharedTokens, same_tokens, shared_tokens
from fastkd.corpora.spans import TEACHER_IDS, TEACHER_LABELS, Aligner
from fastkd.corpora.tasks import IGNORE_INDEX, Batch, Task
from fastkd.corpora.tasks.base import Row
from fastkd.divergences import DIVERGENCES
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.crossed import CrossedObjective, SpanLoss
from fastkd.trainer.crossed_distributions import GoldLoss, HybridLoss, Tokens
from fastkd.trainer.teachers import TeacherSource
from fastkd.trainer.teachers.crossed import AlignedColumns, teachers_batch

# For each value of ``cross_tokenizer`` that compares distributions, the function that classes the tokens.
CLASSES = {"hybrid": shared_tokens, "gold": same_tokens}


def troubles(args: DistillationConfig) -> Iterator[tuple[str, str, str]]:
    """The settings that do not go with ``cross_tokenizer``: a fixed name, the reason, and what to change."""
    if args.cross_tokenizer is None:
        return
    said = f"cross_tokenizer: {args.cross_tokenizer}"
    source = TeacherSource.parse(args.teacher)
    if args.task == "classification":
        yield (
            "crossed_classifier",
            f"{said} aligns the tokens of written text, and a classifier writes none",
            "leave out cross_tokenizer",
        )
    if source.kind not in ("none", "model"):
        what = "several teachers" if source.is_several else f"teacher: {args.teacher}"
        yield (
            "crossed_without_model",
            f"{said} needs one teacher that is a model and reads its own tokens, not {what}",
            "set teacher to a model, or leave out cross_tokenizer",
        )
    if args.teacher_prompt is not None:
        yield (
            "crossed_with_prompt",
            f"{said} already gives the teacher a text of its own",
            "leave out teacher_prompt",
        )
    if args.packing:
        yield (
            "crossed_with_packing",
            f"{said} aligns rows, and packing cuts them at other places for each tokenizer",
            "set packing: false",
        )
    if args.feature_matches or args.gradient_match_weight:
        yield (
            "crossed_with_matches",
            f"{said} gives both sides other tokens, whose layers cannot be compared",
            "leave out feature_matches and gradient_match_weight",
        )
    if args.objective == "sampled":
        yield (
            "crossed_sampled",
            f"{said} compares texts, and objective: sampled the student's single tokens",
            "set objective: full; cross_tokenizer: spans needs no whole distributions either",
        )
    if args.teacher_temperature is not None:
        yield (
            "crossed_temperature",
            f"{said} softens both sides alike",
            "leave out teacher_temperature",
        )
    if DIVERGENCES[args.divergence].splits_label:
        yield (
            "crossed_divergence",
            f"{said} has no label that divergence: {args.divergence} could treat apart",
            "set another divergence, for example forward_kl",
        )


def objective_of(args: DistillationConfig, task: Task, classes: SharedTokens | None) -> CrossedObjective:
    """The loss that ``cross_tokenizer`` asks for.

    Args:
        classes: of the tokens, for those of :data:`CLASSES`; None for ``spans``.
    """
    divergence = {"divergence": args.divergence, "alpha": args.alpha, "beta": args.beta}
    term: SpanLoss | HybridLoss | GoldLoss = SpanLoss(divergence, args.temperature)
    if classes is not None and args.cross_tokenizer == "gold":
        mine, others = Tokens.of(classes.student), Tokens.of(classes.teacher)
        term = GoldLoss(mine, others, classes.count, divergence, args.temperature)
    elif classes is not None:
        own, theirs = (torch.tensor(side) for side in (classes.student, classes.teacher))
        term = HybridLoss(own, theirs, classes.count, divergence, args.temperature)
    return CrossedObjective(task, term, args.label_smoothing_factor)


class Crossing:
    """A run's two tokenizers.

    Args:
        args: the configuration, with ``cross_tokenizer``.
        task: causal_lm or seq2seq.
        tokenizer, teacher_tokenizer: the student's and the teacher's.
        pad_token_id: fills up the teacher's rows.

    Raises:
        ValueError: settings that do not fit.
    """

    def __init__(
        self, args: DistillationConfig, task: Task, tokenizer: Any, teacher_tokenizer: Any, pad_token_id: int
    ) -> None:
        for _, found, remedy in troubles(args):
            raise ValueError(f"{found}: {remedy}")
        self.task, self.tokenizer = task, teacher_tokenizer
        self.aligner = Aligner(tokenizer, teacher_tokenizer, task.shifts_labels)
        self.columns = AlignedColumns(task, pad_token_id)
        classes = None
        if args.cross_tokenizer in CLASSES:
            classes = CLASSES[args.cross_tokenizer](self.aligner.student, self.aligner.teacher)
        self.objective = objective_of(args, task, classes)

    def of_answers(
        self, batch: Batch, asked: Sequence[bool], own: Sequence[Row], ends: frozenset[int]
    ) -> Batch:
        """The teacher's tensors of the student's own answers.

        Args:
            batch: the batch whose prompts were answered.
            asked: which of its rows have prompts.
            own: the rows with the answers, as the student reads them.
            ends: the student's tokens that end an answer.
        """
        theirs = teachers_batch(batch)
        prompts = [ids for ids, one in zip(self._prompts(theirs), asked, strict=True) if one]
        rows = []
        for row, prompt in zip(own, prompts, strict=True):
            said = [token for token in row["labels"] if token != IGNORE_INDEX]
            other = self._answered(prompt, said, ends)
            pair = self.aligner.unpaired(row) if other is None else self.aligner.pair(row, other, ends)
            rows.append({**row, **pair})
        return self.columns(rows, {})

    def _prompts(self, theirs: Batch) -> list[list[int]]:
        """The teacher's tokens before each row's first label; for seq2seq, its source."""
        lengths = theirs["attention_mask"].sum(1)
        if self.task.name != "seq2seq":
            said = theirs["labels"] != IGNORE_INDEX
            lengths = torch.where(said.any(1), said.int().argmax(1), lengths)
        return [ids[:n] for ids, n in zip(theirs["input_ids"].tolist(), lengths.tolist(), strict=True)]

    def _answered(self, prompt: list[int], said: list[int], ends: frozenset[int]) -> Row | None:
        """The teacher's row of an answer, which ends if the student has ended it; None for an empty one."""
        tokens = self.aligner.plain.of(said, ends)
        known = [token for token in tokens if token is not None]
        text = b"".join(known).decode("utf-8", "ignore")
        answer = _continuing(text, self.tokenizer)
        if None in tokens and self.tokenizer.eos_token_id is not None:
            answer.append(int(self.tokenizer.eos_token_id))
        if not answer or not prompt:
            return None
        if self.task.name == "seq2seq":
            return {"input_ids": prompt, "labels": answer}
        return {"input_ids": prompt + answer, "labels": [IGNORE_INDEX] * len(prompt) + answer}


def _continuing(text: str, tokenizer: Any) -> list[int]:
    """The tokens of a text that follows another one, without a space that some tokenizers put before it."""
    if not text:
        return []
    before, whole, alone = (
        list(tokenizer(given, add_special_tokens=False, verbose=False)["input_ids"])
        for given in ("\n", f"\n{text}", text)
    )
    return whole[len(before) :] if before and whole[: len(before)] == before else alone


def teachers_rows(rows: Any) -> Any:
    """Encoded rows as the teacher reads them, for a data set of `datasets` or a list; others as they are."""
    names = {TEACHER_IDS: "input_ids", TEACHER_LABELS: "labels"}
    if hasattr(rows, "rename_columns") and hasattr(rows, "__len__"):
        return rows.select_columns(list(names)).rename_columns(names)
    if isinstance(rows, (list, tuple)):
        return [{name: row[key] for key, name in names.items()} for row in rows]
    return rows
