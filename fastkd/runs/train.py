"""A run from a configuration, as ``fastkd train`` and ``distill`` do it: load, train, evaluate, report."""

from __future__ import annotations

import copy
import json
import logging
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

from fastkd import files
from fastkd.corpora.rows import load_rows
from fastkd.corpora.tasks import TASKS
from fastkd.runs import report
from fastkd.runs.classes import check_control, check_teacher, settle_classes
from fastkd.runs.clock import StepClock
from fastkd.runs.evaluate import classified
from fastkd.runs.progress import Progress
from fastkd.runs.sources import TeacherSource, load_student, load_teacher, load_tokenizer
from fastkd.trainer import checkpoints
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.teachers import Teacher
from fastkd.trainer.trainer import DistillationTrainer

logger = logging.getLogger(__name__)


def run(args: DistillationConfig, command: str) -> dict[str, Any]:
    """Train, save the model and its tokenizer to ``output_dir``, and write ``report.json`` and
    ``report.html`` beside them.

    Args:
        args: the configuration.
        command: ``train`` (no teacher) or ``distill``, as the report names it.

    Returns:
        The report.

    Raises:
        ValueError: a missing or unreadable setting.
    """
    if command == "distill" and args.teacher is None:
        raise ValueError("teacher is not set: give a directory or a hub id (fastkd train trains without one)")
    transformers_logging.disable_progress_bar()  # brief bars that would interrupt ours
    begin_run(args)
    data = load_data(args)
    if command == "distill":
        check_teacher(args)
        check_control(args, data.train["labels"] if args.task == "classification" else ())
    alone = command == "train" or TeacherSource.parse(args.teacher).is_base
    shared = None if alone else load_teacher(args)

    folder = Path(str(args.output_dir))
    found = report.about(args, command)

    def trained(args: DistillationConfig, title: str) -> tuple[dict[str, Any], bool]:
        student = load_student(args)
        teacher = load_teacher(args, student) if command == "distill" and shared is None else shared
        watch = [report.Live(folder, found, title)]
        return train_one(args, title, student, teacher, data.train, data.held_out, data.tokenizer, watch)

    name = "model" if command == "train" else "student"
    found[name], main_process = trained(args, name)
    if command == "distill":
        size = shared.num_parameters() if isinstance(shared, PreTrainedModel) else None
        found["teacher"] = report.teacher_part(found[name]["eval"], size)
        if args.control:
            found["control"], _ = trained(control_of(args), "control")
    if main_process:
        path = report.write(folder, found)
        print(report.table(report.rows(found)))
        print(report.verdict(found))
        print(f"wrote the model and {path}, and the same as a page beside it")
    return found


@dataclass(frozen=True)
class Data:
    """Encoded rows and the tokenizer that encoded them."""

    tokenizer: PreTrainedTokenizerBase
    train: Any
    held_out: Any


def load_data(args: DistillationConfig) -> Data:
    """The tokenizer and the encoded data sets. For classification it also sets ``args.class_names`` if unset.

    Raises:
        ValueError: no training data, or data that cannot be read.
    """
    raw = {field: load_rows(field, args) for field in ("train_file", "eval_file")}
    if raw["train_file"] is None:
        raise ValueError(
            "train_file is not set: give a txt, json, jsonl, csv or parquet file, or a dataset of the hub"
        )
    settle_classes(args, raw["train_file"])
    tokenizer = load_tokenizer(args)
    encoded = {
        field: None if rows is None else TASKS[args.task].tokenize(rows, tokenizer, args, field)
        for field, rows in raw.items()
    }
    return Data(tokenizer, encoded["train_file"], encoded["eval_file"])


# Fields that may differ between a run and the run that resumes it.
_NOT_THE_RUN = {
    "output_dir",
    "resume_from_checkpoint",
    "disable_tqdm",
    "report_to",
    "logging_dir",
    "run_name",
}


def begin_run(args: DistillationConfig) -> None:
    """Set ``args.resume_from_checkpoint`` and write ``run.json``.

    If the field is unset, the run resumes from its own last whole checkpoint, if there is one. ``false``
    starts again and unseals the checkpoints that are there.

    Raises:
        ValueError: ``output_dir`` holds checkpoints of a run with other settings.
    """
    folder = Path(str(args.output_dir))
    record = folder / "run.json"
    settings = {k: v for k, v in report.settings(args).items() if k not in _NOT_THE_RUN}
    settings = json.loads(json.dumps(settings, default=str))
    choice = str(args.resume_from_checkpoint).lower() if args.resume_from_checkpoint is not None else None
    if choice is None and (last := checkpoints.last_whole(folder)) is not None:
        before = json.loads(record.read_text("utf-8")) if record.exists() else {}
        changed = sorted(k for k in {*before, *settings} if before.get(k) != settings.get(k))
        if changed:
            raise ValueError(
                f"{folder} holds checkpoints of a run with other settings ({', '.join(changed)}): "
                "give another output_dir, or resume_from_checkpoint: true to resume with the new ones, "
                "or false to start again"
            )
        logger.warning("resuming from %s", last)
        args.resume_from_checkpoint = "true"
    elif choice == "false":
        args.resume_from_checkpoint = None
        if args.should_save:
            for path in folder.glob("checkpoint-*"):
                checkpoints.unseal(path)
    if args.should_save:
        files.write_json(record, settings)


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
) -> tuple[dict[str, Any], bool]:
    """Train and save one model, with a progress bar called ``title`` and the further callbacks ``watch``.

    Returns:
        Its part of the report, and whether this is the process that should write it.
    """
    clock = StepClock()
    callbacks = [clock, *watch]
    trainer = DistillationTrainer(
        student, teacher, args, None, train, held_out, tokenizer, callbacks=callbacks
    )
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    if not args.disable_tqdm:
        trainer.add_callback(Progress(title))
    resume: Any = args.resume_from_checkpoint
    if str(resume).lower() == "true":  # resume, if there is a whole checkpoint
        folder = str(args.output_dir)
        last = checkpoints.last_whole(Path(folder))
        resume = None if last is None else str(last)
    trainer.train(resume_from_checkpoint=resume)
    cost = clock.report()
    trainer.save_model()
    metrics: dict[str, float] = {}
    if held_out is not None:
        ended = trainer.state.log_history[-2:]  # the last evaluation comes before the summary of the run
        done = [e for e in ended if "eval_loss" in e and e["step"] == trainer.state.global_step]
        metrics = done[0] if done and not args.load_best_model_at_end else trainer.evaluate()
    found = {
        "parameters": student.num_parameters(),
        "fused_head": trainer.fused,
        "steps": trainer.state.global_step,
        **cost,
        "eval": {
            name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_")
        },
        "history": trainer.state.log_history,
    }
    if held_out is not None and args.task == "classification":
        found |= classified(trainer)
    return found, trainer.is_world_process_zero()
