"""How the models of a run are measured on its held-out rows: each of them passes over the rows once."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from fastkd.corpora.tasks import IGNORE_INDEX, TASKS
from fastkd.runs import report
from fastkd.runs.answers import Asked, Said
from fastkd.runs.latency import latency
from fastkd.runs.predictions import Keeper, Predictions, held_out_texts
from fastkd.trainer import zero
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.teachers import BaseTeacher, LiveTeacher, Memory, RememberedTeacher, plain_teacher
from fastkd.trainer.trainer import DistillationTrainer

logger = logging.getLogger(__name__)


@dataclass
class TeacherSeen:
    """The measurements of a teacher that several runs share, since it is the same model in all of them.

    Attributes:
        memory: its outputs for held-out batches.
        alone: its answers' scores, or the time that it takes for a text; None before they are measured.
        answers: its answers, if it writes.
    """

    memory: Memory = field(default_factory=Memory)
    alone: dict[str, Any] | None = None
    answers: Said | None = None


class Measuring:
    """The held-out data of a run, and what its models make of it.

    The teacher is measured along with the student. Its outputs are kept, so that the control can be compared
    with them too.

    Args:
        args: the configuration.
        tokenizer: the tokenizer.
        encoded: the held-out rows; None if there are none, so that there is nothing to measure.
        raw: the same rows as they were read; None if nobody reads them.
        asked: the prompts that every model answers; None for none.
        size: number of bytes of text that the rows predict, for bits per byte; 0 for none.
        seen: what other runs have measured of the same teacher.

    Attributes:
        answers: those of every model, by its name.
    """

    def __init__(
        self,
        args: DistillationConfig,
        tokenizer: Any,
        encoded: Any,
        raw: Any = None,
        asked: Asked | None = None,
        size: int = 0,
        seen: TeacherSeen | None = None,
    ) -> None:
        self.args, self.tokenizer, self.encoded, self.raw = args, tokenizer, encoded, raw
        self.asked, self.bytes = asked, size
        self.task = TASKS[args.task]
        self.answers: dict[str, Said] = {}
        self._seen = seen or TeacherSeen()
        self._keeper: Keeper | None = None
        self._predictions: dict[str, Predictions] = {}
        self._collate: Any = None
        self._teachers: tuple[Any, Asked | None] = tokenizer, asked

    def of_teacher(self, tokenizer: Any, asked: Asked | None) -> None:
        """Let the teacher answer with a tokenizer of its own.

        Args:
            tokenizer: the teacher's.
            asked: the same prompts as its tokens.
        """
        self._teachers = tokenizer, asked

    def watch(self, trainer: DistillationTrainer) -> None:
        """Prepare a trainer whose model :meth:`at` will measure, before it trains."""
        self._keeper = Keeper(trainer) if self.task.name == "classification" else None
        module: Any = trainer.accelerator.unwrap_model(trainer.model)
        side = plain_teacher(module.teacher)
        if not isinstance(side, (LiveTeacher, BaseTeacher)) or _is_sharded(trainer):
            return
        if not zero.is_sharded(side.model):
            module.teacher = RememberedTeacher(module.teacher, self._seen.memory)

    def at(self, name: str, trainer: DistillationTrainer) -> dict[str, Any]:
        """The part of the report of a trainer's model: its ``eval``, and for a classifier its ``classes`` and
        ``latency``. Models that write answer the prompts, too.

        The trainer's last evaluation counts if the model has not changed since.
        """
        keeper, self._keeper = self._keeper, None
        metrics = _last_evaluation(trainer)
        if metrics is None or (keeper is not None and not keeper.is_of(trainer.state.global_step)):
            metrics = trainer.evaluate()
        found: dict[str, Any] = {"eval": named(metrics)}
        model: Any = trainer.student
        self._collate = trainer.data_collator
        if keeper is not None and keeper.last is not None:
            made = self._predictions[name] = keeper.last[1]
            found["eval"] |= made.metrics()
            found |= made.classes(made.logits)
        if self.bytes and "ce" in found["eval"]:
            tokens = sum(_predicted(row) for row in self.encoded["labels"])
            found["eval"]["bits_per_byte"] = found["eval"]["ce"] * tokens / math.log(2) / self.bytes
        if _is_sharded(trainer):
            if self.asked is not None:
                logger.warning("a sharded model writes no answers: measure them with fastkd evaluate")
            self.asked = self._collate = None
        return found | self._alone(name, model)

    def at_teacher(self, student: str, part: dict[str, Any], teacher: Any, model: Any) -> dict[str, Any]:
        """The teacher's part of the report, from the pass in which the student was measured.

        Args:
            student: the student's name in the report.
            part: the student's part of it.
            teacher: the run's teacher: a model, a cache, or the base of the student's adapter.
            model: the student.
        """
        own = isinstance(teacher, nn.Module)
        found = report.teacher_part(part["eval"], teacher.num_parameters() if own else None)
        made = self._predictions.get(student)
        if made is not None and made.teacher is not None:
            found |= made.classes(made.teacher)
        if own and not zero.is_sharded(teacher):
            return found | self._teacher_alone(teacher)
        if isinstance(teacher, BaseTeacher):
            with model.disable_adapter():
                return found | self._alone("teacher", model)
        return found  # a cache writes nothing, and its teacher's speed is unknown

    def _teacher_alone(self, teacher: Any) -> dict[str, Any]:
        """As :meth:`_alone`, once for all runs with this teacher."""
        seen = self._seen
        if seen.alone is None:
            seen.alone = self._alone("teacher", teacher)
            seen.answers = self.answers.get("teacher")
        elif seen.answers is not None:
            self.answers["teacher"] = seen.answers
        return copy.deepcopy(seen.alone)

    def _alone(self, name: str, model: Any) -> dict[str, Any]:
        """The measurements of a model by itself: its answers, or the time that it takes for a text."""
        found: dict[str, Any] = {}
        if self.task.name == "classification":
            if self._collate is not None and self.args.process_index == 0:
                found["latency"] = latency(model, self.task, self.encoded, self._collate)
        elif self.asked is not None:
            tokenizer, asked = self._teachers if name == "teacher" else (self.tokenizer, self.asked)
            if asked is not None:
                found, self.answers[name] = asked.answered(name, model, tokenizer, self.args)
        return found

    def describe(self, found: dict[str, Any]) -> None:
        """Add to a report what concerns several of its models: samples, misclassified texts, the headline."""
        if self.args.headline != "auto":
            found["headline"] = self.args.headline
        if self.asked is not None and self.answers:
            self.asked.describe(found, self.answers, self.args.per_device_eval_batch_size)
            found["headline"] = self.asked.headline(self.tokenizer, self.args)
            if self.asked.summarises(self.tokenizer):
                found["lead"] = self.asked.lead()
        name = "student" if "student" in self._predictions else "model"
        if self.raw is not None and (made := self._predictions.get(name)) is not None:
            found["mistakes"] = made.mistakes(held_out_texts(self.raw), self.encoded["labels"])


def named(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics of an evaluation, under the names that a report uses."""
    found = {name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_")}
    found.pop("model_preparation_time", None)
    return found


def _last_evaluation(trainer: DistillationTrainer) -> dict[str, float] | None:
    """The metrics of the trained model, if its training ended with an evaluation of it."""
    state = trainer.state
    ended = state.log_history[-2:]  # the last evaluation comes before the summary of the run
    best = state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    if best is not None and not best.endswith(f"-{state.global_step}"):
        return None
    return next((e for e in ended if "eval_loss" in e and e["step"] == state.global_step), None)


def _is_sharded(trainer: DistillationTrainer) -> bool:
    return bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)


def text_bytes(encoded: Any, tokenizer: Any) -> int:
    """UTF-8 bytes of all predicted text. The ends of texts are predicted too, but they have no bytes."""
    total = 0
    for row in encoded["labels"]:
        said = [token for token in row[1:] if token != IGNORE_INDEX]
        total += len(tokenizer.decode(said, skip_special_tokens=True).encode())
    return total


def _predicted(labels: Sequence[int]) -> int:
    return sum(label != IGNORE_INDEX for label in labels[1:])
