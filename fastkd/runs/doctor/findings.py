"""Defines a finding, and the case that the checks examine."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import GenerationConfig

from fastkd.corpora.sample import Sample
from fastkd.corpora.tasks import TASKS
from fastkd.runs.samples import look_at
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.loading import load_tokenizer, read_config, teacher_tokenizer
from fastkd.trainer.teachers import TeacherSource

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """Something about a configuration.

    Attributes:
        severity: ``error``: the run fails or trains on something wrong. ``warning``: the run works, but
            probably not as intended. ``note``: good to know.
        name: fixed name of the finding, for programs that read it.
        found: one sentence with the figure that shows it.
        remedy: the setting to change, empty where nothing needs to change.
    """

    severity: Severity
    name: str
    found: str
    remedy: str = ""


@dataclass
class Case:
    """A configuration, and the models, tokenizers and data that it names, each read once and only on demand.

    Attributes:
        args: a copy that the checks may fill in.
        fast: load no weights, read only the manifest of a cache, and estimate no memory.
        troubles: findings about anything that could not be read.
    """

    args: DistillationConfig
    fast: bool
    troubles: list[Finding] = field(default_factory=list)

    @property
    def teacher(self) -> TeacherSource:
        return TeacherSource.parse(self.args.teacher)

    @functools.cached_property
    def student_config(self) -> Any:
        return self._try("model", lambda: read_config("model", self.args.model, self.args))

    @functools.cached_property
    def teacher_config(self) -> Any:
        if not self.teacher.is_model:
            return None
        return self._try("teacher", lambda: read_config("teacher", self.args.teacher, self.args))

    @functools.cached_property
    def student_without_weights(self) -> Any:
        """The student on the meta device, whose parameters have shapes and no data."""
        return self._built("student", self.student_config)

    @functools.cached_property
    def teacher_without_weights(self) -> Any:
        """As :attr:`student_without_weights`, for the teacher."""
        return self._built("teacher", self.teacher_config)

    def _built(self, side: str, config: Any) -> Any:
        if config is None:
            return None
        try:
            with torch.device("meta"):
                return TASKS[self.args.task].auto_class.from_config(
                    config, trust_remote_code=self.args.trust_remote_code
                )
        except Exception as error:  # a model's own code may raise any error
            reason = textwrap.shorten(str(error), 400, placeholder=" ...")
            self.troubles.append(Finding("error", side, f"the {side} cannot be built: {reason}"))
            return None

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that the run uses."""
        return self._try("tokenizer", lambda: load_tokenizer(self.args))

    @functools.cached_property
    def teacher_tokenizer(self) -> Any:
        """The teacher's own tokenizer; None where the teacher has none."""
        if self.teacher_config is None:
            return None
        return self._try("teacher_tokenizer", lambda: teacher_tokenizer(self.args))

    @property
    def crossed(self) -> Any:
        """The teacher's tokenizer where ``cross_tokenizer`` lets it be another one than the student's; None
        otherwise, and where the two are the same.
        """
        if self.args.cross_tokenizer is None or self.tokenizer is None or self.teacher_tokenizer is None:
            return None
        same = self.tokenizer.get_vocab() == self.teacher_tokenizer.get_vocab()
        return None if same or self.args.task == "classification" else self.teacher_tokenizer

    @functools.cached_property
    def train(self) -> Sample | None:
        return self._look("train_file")

    @functools.cached_property
    def held_out(self) -> Sample | None:
        return self._look("eval_file")

    @functools.cached_property
    def optimizer_steps(self) -> int | None:
        """Optimizer steps of the whole run; None where the number of rows is not known."""
        args = self.args
        if args.max_steps > 0:
            return args.max_steps
        if self.train is None or args.packing:
            return None
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        return int(-(-self.train.total // batch) * args.num_train_epochs)

    def generation_config(self, name: str) -> Any:
        try:
            return GenerationConfig.from_pretrained(name)
        except (OSError, ValueError):
            return None

    def _look(self, name: str) -> Sample | None:
        if self.tokenizer is None:
            return None
        return self._try(name, lambda: look_at(name, self.args, self.tokenizer, self.crossed))

    def _try(self, name: str, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (ValueError, OSError, ImportError) as error:
            self.troubles.append(Finding("error", f"unreadable_{name}", " ".join(str(error).split())))
            return None


Check = Callable[[Case], Iterator[Finding]]


def count(some: int, of: int) -> str:
    """``3 of 40 rows (8 %)``"""
    return f"{some:,} of {of:,} rows ({percent(some / max(of, 1))})"


def percent(share: float) -> str:
    """``8 %`` or ``0.12 %``: two digits, and all of them from 10 on."""
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.2g} %"
