"""Answers of models to held-out prompts: which prompts, the answers' scores, and samples to read."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from accelerate.utils import gather_object

from fastkd.corpora.decode import Answer, Question, asks, decode, questions
from fastkd.corpora.tasks import TASKS
from fastkd.runs import report, scores
from fastkd.trainer.config import DistillationConfig

# Number of prompts whose answers the report shows.
SAMPLES = 8
# Sources this many times as long as their references, in tokens and in the median, are summarised.
SUMMARISED = 3

# The answers of one model, by the way of decoding: ``greedy`` or ``beam``.
Said = dict[str, list[str]]


@dataclass(frozen=True)
class Asked:
    """The held-out prompts that every model of a run answers.

    Attributes:
        questions: the prompts with their references.
        of: number of held-out rows that they were taken from.
        beams: numbers of beams to decode with, by the names that the report uses.
    """

    questions: Sequence[Question]
    of: int
    beams: dict[str, int]

    @classmethod
    def all_of(cls, rows: Any, tokenizer: Any, args: DistillationConfig) -> Asked | None:
        """Every prompt of the held-out rows, greedily and with ``num_beams`` beams, as ``fastkd evaluate``
        asks them; None for rows without prompts.
        """
        return cls._of(rows, tokenizer, args, len(rows), True)

    @classmethod
    def some_of(cls, rows: Any, tokenizer: Any, args: DistillationConfig) -> Asked | None:
        """The ``eval_answers`` prompts of the end of a run, evenly spread over the held-out rows."""
        return None if rows is None else cls._of(rows, tokenizer, args, args.eval_answers, args.eval_beam)

    @classmethod
    def _of(
        cls, rows: Any, tokenizer: Any, args: DistillationConfig, wanted: int, beam: bool
    ) -> Asked | None:
        task = TASKS[args.task]
        if wanted == 0 or not asks(task, task.layout_of(rows.column_names, "eval_file")):
            return None
        chosen = list(spread(len(rows), wanted))
        part = rows if len(chosen) == len(rows) else rows.select(chosen)
        found = [
            replace(asked, row=chosen[asked.row])
            for asked in questions(part, task, tokenizer, args, "eval_file")
        ]
        beams = {"greedy": 1} | ({"beam": args.num_beams} if beam and args.num_beams > 1 else {})
        return cls(found, len(rows), beams)

    def answered(
        self, name: str, model: Any, tokenizer: Any, args: DistillationConfig
    ) -> tuple[dict[str, Any], Said]:
        """A model's answers, and their scores as a part of the report, both by the way of decoding.

        Each process decodes a part of the prompts; afterwards every process has all answers.
        """
        found: dict[str, Any] = {}
        said: Said = {}
        for how, beams in self.beams.items():
            title = f"{name}, " + (how if beams == 1 else f"{beams} beams")
            found[how], said[how] = self._decoded(title, model, tokenizer, args, beams)
        return found, said

    def _decoded(
        self, title: str, model: Any, tokenizer: Any, args: DistillationConfig, beams: int
    ) -> tuple[dict[str, Any], list[str]]:
        mine = list(range(args.process_index, len(self.questions), args.world_size))
        shown = None if args.disable_tqdm or args.process_index else title
        began = time.perf_counter()
        decoding = decode(
            *(model, TASKS[args.task], tokenizer, [self.questions[i].ids for i in mine]),
            num_beams=beams,
            max_new_tokens=args.max_completion_length,
            batch_size=args.per_device_eval_batch_size,
            title=shown,
            generation_kwargs=args.generation_kwargs,  # type: ignore[arg-type]
        )
        pairs = [(mine[number], best[0]) for number, best in decoding]
        if args.world_size > 1:
            pairs = gather_object(pairs)
        seconds = time.perf_counter() - began
        answers: list[Answer] = [answer for _, answer in sorted(pairs, key=lambda pair: pair[0])]
        said = [answer.text for answer in answers]
        tokens = sum(len(answer.tokens) for answer in answers)
        found = {
            "num_beams": beams,
            **scores.texts(said, [question.reference for question in self.questions]),
            "mean_length": tokens / len(answers),
            "hit_limit": sum(not answer.complete for answer in answers) / len(answers),
            "tokens_per_second": tokens / seconds,
        }
        return found, said

    def summarises(self, tokenizer: Any) -> bool:
        """Whether the references are summaries of their sources, by their lengths."""
        some = [self.questions[i] for i in spread(len(self.questions), 200)]
        ratios = sorted(
            len(asked.ids) / max(1, len(tokenizer(asked.reference, add_special_tokens=False)["input_ids"]))
            for asked in some
        )
        return ratios[len(ratios) // 2] >= SUMMARISED

    def lead(self) -> dict[str, Any]:
        """The scores of a summary that any model should exceed: the first words of each source, as many as
        the references have in the median (``words``). They are ``greedy``, as a model's would be.
        """
        lengths = sorted(len(asked.reference.split()) for asked in self.questions)
        words = lengths[len(lengths) // 2]
        said = [" ".join(asked.source.split()[:words]) for asked in self.questions]
        return {"words": words, "greedy": scores.texts(said, [asked.reference for asked in self.questions])}

    def headline(self, tokenizer: Any, args: DistillationConfig) -> str:
        """The figure that the report leads with, among those that ``headline`` may name."""
        if args.headline != "auto":
            return args.headline
        return "rougeL" if self.summarises(tokenizer) else "bleu"

    def describe(self, found: dict[str, Any], answers: dict[str, Said], batch_size: int) -> None:
        """Add to a report how many rows were answered, samples, and how scores were computed.

        Args:
            found: the report, with the parts of all models.
            answers: those of every model, by its name.
            batch_size: number of prompts that a process decoded at a time.
        """
        shares(found)
        found["answers"] = {"rows": len(self.questions), "of": self.of, "batch_size": batch_size}
        found["signatures"] = scores.signatures([asked.reference for asked in self.questions])
        shown = {who: answers[who] for who in report.parts(found) if who in answers}
        found["samples"] = [
            {
                "row": self.questions[i].row,
                "source": self.questions[i].source,
                "reference": self.questions[i].reference,
                "answers": {who: {how: said[how][i] for how in said} for who, said in shown.items()},
            }
            for i in spread(len(self.questions), SAMPLES)
        ]


def shares(found: dict[str, Any]) -> None:
    """Add ``bleu_share`` to each model's part: its BLEU divided by the teacher's."""
    teacher = found.get("teacher", {})
    for name, part in report.parts(found).items():
        for how in ("greedy", "beam"):
            if name != "teacher" and how in part and teacher.get(how, {}).get("bleu"):
                part[how]["bleu_share"] = part[how]["bleu"] / teacher[how]["bleu"]


def spread(total: int, wanted: int) -> Iterator[int]:
    """At most ``wanted`` numbers below ``total``, evenly spread."""
    yield from sorted({i * total // wanted for i in range(wanted)})
