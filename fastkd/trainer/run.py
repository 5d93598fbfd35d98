"""A run from a configuration, as ``fastkd train`` and ``distill`` do it: load, train, evaluate, report."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PrinterCallback, ProgressCallback
from transformers.trainer_utils import get_last_checkpoint

from fastkd.trainer import report
from fastkd.trainer.clock import StepClock
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.data import load_file, tokenize
from fastkd.trainer.loading import load_student, load_teacher, load_tokenizer
from fastkd.trainer.progress import Progress
from fastkd.trainer.trainer import DistillationTrainer


def run(args: DistillationConfig, command: str) -> dict[str, Any]:
    """Train, save the model and its tokenizer to ``output_dir``, and write ``report.json`` beside them.

    Args:
        args: the configuration.
        command: ``train`` (no teacher) or ``distill``, as the report names it.

    Returns:
        The report.

    Raises:
        ValueError: a missing or unreadable setting.
    """
    if args.train_file is None:
        raise ValueError("train_file is not set: give a txt, json, jsonl, csv or parquet file")
    if command == "distill" and args.teacher is None:
        raise ValueError("teacher is not set: give a directory or a hub id (fastkd train trains without one)")
    tokenizer = load_tokenizer(args)
    train = tokenize(load_file("train_file", args.train_file, args), tokenizer, args, "train_file")
    held_out = None
    if args.eval_file is not None:
        held_out = tokenize(load_file("eval_file", args.eval_file, args), tokenizer, args, "eval_file")
    teacher = load_teacher(args) if command == "distill" else None

    def trained(args: DistillationConfig, title: str) -> tuple[dict[str, Any], bool]:
        return train_one(args, title, load_student(args), teacher, train, held_out, tokenizer)

    found: dict[str, Any] = {
        "command": command,
        "versions": report.versions(),
        "settings": report.settings(args),
    }
    name = "model" if teacher is None else "student"
    found[name], main_process = trained(args, name)
    rows = {name: table_row(found[name])}
    if teacher is not None:
        if "teacher_perplexity" in found[name]["eval"]:
            perplexity = found[name]["eval"]["teacher_perplexity"]
            rows = {"teacher": {"perplexity": perplexity, "parameters": teacher.num_parameters()}, **rows}
        if args.control:
            found["control"], _ = trained(control_of(args), "control")
            rows["control"] = table_row(found["control"])
    if main_process:
        path = Path(str(args.output_dir)) / "report.json"
        report.write_json(path, found)
        print(report.table(rows))
        print(f"wrote the model and {path}")
    return found


def control_of(args: DistillationConfig) -> DistillationConfig:
    """The same run without the teacher: same student, data, order, steps and seed."""
    args = copy.deepcopy(args)
    args.kd_ratio = 0.0
    args.output_dir = str(Path(str(args.output_dir)) / "control")
    if args.resume_from_checkpoint is not None:
        args.resume_from_checkpoint = "true"  # from its own checkpoints, not the student's
    return args


def train_one(
    args: DistillationConfig,
    title: str,
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    train: Any,
    held_out: Any,
    tokenizer: Any,
) -> tuple[dict[str, Any], bool]:
    """Train and save one model, with a progress bar called ``title``.

    Returns:
        Its part of the report, and whether this is the process that should write it.
    """
    clock = StepClock()
    trainer = DistillationTrainer(student, teacher, args, None, train, held_out, tokenizer, callbacks=[clock])
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    if not args.disable_tqdm:
        trainer.add_callback(Progress(title))
    resume: Any = args.resume_from_checkpoint
    if str(resume).lower() == "true":  # go on, if there is anything to go on from
        folder = str(args.output_dir)
        resume = get_last_checkpoint(folder) if Path(folder).is_dir() else None
    trainer.train(resume_from_checkpoint=resume)
    cost = clock.report()
    trainer.save_model()
    metrics: dict[str, float] = {}
    if held_out is not None:
        last = trainer.state.log_history[-2:]  # the last evaluation comes before the summary of the run
        done = [
            entry for entry in last if "eval_loss" in entry and entry["step"] == trainer.state.global_step
        ]
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
    return found, trainer.is_world_process_zero()


def table_row(part: dict[str, Any]) -> dict[str, Any]:
    """A model's part of the report as a row of the table."""
    return {**part, **part["eval"]}
