"""A run from a configuration, as ``fastkd train`` and ``distill`` do it: load, train, evaluate, report."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
)
from transformers.utils import logging as transformers_logging

from fastkd.corpora.rows import load_rows
from fastkd.corpora.store import generated_manifest
from fastkd.corpora.tasks import TASKS
from fastkd.directories import claimed, writing_to
from fastkd.errors import Diverged
from fastkd.runs import disk_space, report
from fastkd.runs.answers import Asked
from fastkd.runs.chance import Chance
from fastkd.runs.classes import check_control, check_teacher, settle_classes
from fastkd.runs.clock import StepClock
from fastkd.runs.contents import Contents, contents, student_contents
from fastkd.runs.control import fewer_rows, keep_length, labelled
from fastkd.runs.measuring import Measuring, TeacherSeen
from fastkd.runs.output_directory import open_record, refuse_inputs
from fastkd.runs.progress import Progress
from fastkd.runs.refusals import refuse
from fastkd.runs.samples import needs_answer
from fastkd.trainer import checkpoints, zero
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.loading import check_tokens, load_student, load_teacher, load_tokenizer
from fastkd.trainer.teachers import ServedTeacher, Teacher, TeacherSource
from fastkd.trainer.teachers.several import each_of
from fastkd.trainer.trainer import DistillationTrainer

# A run mentions that the student waited for its teacher from this many seconds and this share of its time.
_WAITED, _WAITED_SHARE = 5.0, 0.1


def run(args: DistillationConfig, command: str, inputs: Inputs | None = None) -> dict[str, Any]:
    """Train, save the model and its tokenizer to ``output_dir``, and write ``report.json`` and
    ``report.html`` beside them.

    Args:
        args: the configuration.
        command: ``train`` (no teacher) or ``distill``, as the report names it.
        inputs: the data and the teacher, where the caller has read them for several runs.

    Returns:
        The report.

    Raises:
        ValueError: a missing or unreadable setting, or an ``output_dir`` in which something would be lost.
        Diverged: the weights are no longer finite.
        OSError: ``output_dir`` cannot be written.
    """
    check(args, command)
    transformers_logging.disable_progress_bar()  # brief bars that would interrupt ours
    folder = Path(str(args.output_dir))
    with claimed(folder) if args.should_save else writing_to(folder):
        return _run(args, command, folder, inputs)


def check(args: DistillationConfig, command: str) -> None:
    """Raise a ``ValueError`` for settings with which no run can work, before anything is read or written."""
    if command == "distill" and args.teacher is None:
        raise ValueError("teacher is not set: give a directory or a hub id (fastkd train trains without one)")
    refuse(args)
    zero.require_launcher(args)
    refuse_inputs(args)


def _run(args: DistillationConfig, command: str, folder: Path, inputs: Inputs | None) -> dict[str, Any]:
    record = open_record(args)
    if inputs is None:
        inputs = load_inputs(args, command)
    else:
        settle_classes(args, inputs.data.raw["train_file"])
    data, shared = inputs.data, inputs.teacher
    first = load_student(args)
    if args.should_save:
        disk_space.require(args, first, disk_space.steps_of(args, data.train))
    record.begin(inputs.contents(first), args.should_save)
    found = {**report.about(args, command), **sequence_level(args)}
    chance = Chance(data.train, data.held_out, args)
    held_out = data.raw["eval_file"]
    asked = Asked.some_of(held_out, data.tokenizer, args)
    look = Measuring(args, data.tokenizer, data.held_out, held_out, asked, seen=inputs.seen)
    if data.teacher_tokenizer is not None:
        theirs = Asked.some_of(held_out, data.teacher_tokenizer, args)
        look.of_teacher(data.teacher_tokenizer, theirs)

    def teacher_of(student: PreTrainedModel) -> Any:
        return load_teacher(args, student) if command == "distill" and shared is None else shared

    def trained(
        args: DistillationConfig, title: str, student: PreTrainedModel, teacher: Any
    ) -> tuple[dict[str, Any], bool]:
        live = report.Live(folder, found, title)
        watch = [live, chance.watch(title, args)]
        rows = data.train, data.held_out, data.tokenizer
        try:
            return train_one(args, title, student, teacher, *rows, watch, look)
        except Diverged as error:
            live.failed(str(error))
            raise

    name = "model" if command == "train" else "student"
    teacher = teacher_of(first)
    found[name], main_process = trained(args, name, first, teacher)
    if command == "distill":
        found["teacher"] = look.at_teacher(name, found[name], teacher, first)
    del first, teacher
    if command == "distill" and args.control:
        found |= fewer_rows(data.train, args)
        control = control_of(args)
        keep_length(control, data.train, found[name])
        other = load_student(control)
        found["control"], _ = trained(control, "control", other, teacher_of(other))
    look.describe(found)
    found["warnings"] = [*chance.warnings(found), *waiting(found[name])]
    if main_process:
        path = report.write(folder, found)
        print(report.text(found))
        print(f"wrote the model and {path}, and the same as a page beside it")
    return found


def sequence_level(args: DistillationConfig) -> dict[str, Any]:
    """The report's entry on training data that ``fastkd generate`` wrote: how it was made, and by whom."""
    manifest = generated_manifest(args.train_file)
    if manifest is None or not TASKS[args.task].writes_text:
        return {}
    mode, teacher = manifest.made_from.get("generation_mode"), manifest.notes.get("teacher")
    return {"sequence_level": {"mode": mode, "teacher": teacher}}


def waited_for(teacher: Any) -> float:
    """Seconds for which students have waited for a served teacher, or for those among several."""
    return sum(one.waited for one in each_of(teacher).values() if isinstance(one, ServedTeacher))


def waiting(part: dict[str, Any]) -> list[str]:
    """A warning where the student has waited for a served teacher for a tenth of its time or more."""
    waited = part.get("waited_seconds", 0.0)
    if waited <= max(_WAITED, _WAITED_SHARE * part["steps"] * (part.get("seconds_per_step") or 0.0)):
        return []
    return [
        f"the student waited {waited:,.0f} seconds for its teacher's server: raise teacher_requests, make a "
        "cache of the teacher (fastkd cache), or give the server more machines"
    ]


@dataclass(frozen=True)
class Data:
    """Encoded rows, the tokenizer that encoded them, and the rows of each field as they were read; also the
    teacher's tokenizer, if it is another one.
    """

    tokenizer: PreTrainedTokenizerBase
    train: Any
    held_out: Any
    raw: dict[str, Any]
    teacher_tokenizer: PreTrainedTokenizerBase | None = None


@dataclass(frozen=True)
class Inputs:
    """The inputs that runs with several seeds share, since no run changes them.

    Attributes:
        data: the encoded rows.
        teacher: a model or a cache; None without one, and where it is each run's own student, or its base.
        seen: what was measured of the teacher, which no run measures again.
    """

    data: Data
    teacher: PreTrainedModel | Teacher | None
    seen: TeacherSeen = dataclasses.field(default_factory=TeacherSeen)

    @functools.cached_property
    def _digests(self) -> Contents:
        return contents(self.data.raw, self.data.tokenizer, self.teacher)

    def contents(self, student: PreTrainedModel) -> Contents:
        """The digests of what a run with this student reads."""
        return self._digests | student_contents(student)


def load_inputs(args: DistillationConfig, command: str) -> Inputs:
    """The data and the teacher of a run; it sets the classes of ``args``, as :func:`load_data` does.

    Raises:
        ValueError: data or a teacher that cannot be read, or that do not fit each other.
    """
    data = load_data(args, reads_teacher=command == "distill")
    if command == "distill":
        check_teacher(args)
        check_control(args, labelled(data.train, args))
    alone = command == "train" or TeacherSource.parse(args.teacher).is_own
    return Inputs(data, None if alone else load_teacher(args))


def load_data(args: DistillationConfig, reads_teacher: bool = True) -> Data:
    """The tokenizer and the encoded data sets. For classification it also sets ``args.class_names`` if unset.

    Args:
        args: the configuration.
        reads_teacher: whether the model that ``teacher`` names will read the encoded data.

    Raises:
        ValueError: no training data, data that cannot be read, or a teacher with other tokens.
    """
    raw = {field: load_rows(field, args) for field in ("train_file", "eval_file")}
    if raw["train_file"] is None:
        raise ValueError(
            "train_file is not set: give a txt, json, jsonl, csv, tsv or parquet file, or a dataset of the "
            "hub"
        )
    settle_classes(args, raw["train_file"])
    tokenizer = load_tokenizer(args)
    theirs = check_tokens(args, tokenizer) if reads_teacher else None
    encoded = {
        field: None
        if rows is None
        else TASKS[args.task].tokenize(rows, tokenizer, args, field, needs_answer(field, args), theirs)
        for field, rows in raw.items()
    }
    return Data(tokenizer, encoded["train_file"], encoded["eval_file"], raw, theirs)


def control_of(args: DistillationConfig) -> DistillationConfig:
    """The same run without the teacher: same student, data, order, steps and seed."""
    args = copy.deepcopy(args)
    args.kd_ratio = args.lmbda = args.gradient_match_weight = 0.0
    args.feature_matches = None
    args.output_dir = str(Path(str(args.output_dir)) / "control")
    if args.resume_from_checkpoint is not None:
        args.resume_from_checkpoint = "true"  # from its own checkpoints, not the student's
    return args


def train_one(
    args: DistillationConfig,
    title: str,
    student: PreTrainedModel,
    teacher: PreTrainedModel | Teacher | None,
    train: Any,
    held_out: Any,
    tokenizer: Any,
    watch: Sequence[TrainerCallback] = (),
    look: Measuring | None = None,
) -> tuple[dict[str, Any], bool]:
    """Train, save and measure one model, with a progress bar called ``title`` and the further callbacks
    ``watch``. ``look`` is how the models of the run are measured; by default only their held-out rows are.

    Returns:
        Its part of the report, and whether this is the process that should write it.
    """
    clock = StepClock()
    callbacks = [clock, *watch]
    trainer = DistillationTrainer(
        student, teacher, args, None, train, held_out, tokenizer, callbacks=callbacks
    )
    look = Measuring(args, tokenizer, held_out) if look is None else look
    look.watch(trainer)
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    if not args.disable_tqdm:
        trainer.add_callback(Progress(title))
    resume: Any = args.resume_from_checkpoint
    if str(resume).lower() == "true":  # resume, if there is a whole checkpoint
        folder = str(args.output_dir)
        last = checkpoints.last_whole(Path(folder))
        resume = None if last is None else str(last)
    waited = waited_for(teacher)
    trainer.train(resume_from_checkpoint=resume)
    cost = clock.report()
    trainer.save_model()
    found: dict[str, Any] = {
        "parameters": student.num_parameters(),
        "fused_head": trainer.fused,
        "steps": trainer.state.global_step,
        **cost,
        "eval": {},
        "history": trainer.state.log_history,
    }
    found["waited_seconds"] = waited_for(teacher) - waited
    if held_out is not None:
        found |= look.at(title.strip(), trainer)
    return found, trainer.is_world_process_zero()
