"""``fastkd evaluate``: measures a model on held-out data, with its teacher and the control of its run."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback

from fastkd.corpora.rows import load_rows
from fastkd.corpora.tasks import TASKS
from fastkd.directories import require_writable, writing_to
from fastkd.runs import report
from fastkd.runs.answers import Asked
from fastkd.runs.classes import check_teacher, settle_classes
from fastkd.runs.clock import peak_memory_mb, reset_peak_memory
from fastkd.runs.measuring import Measuring, text_bytes
from fastkd.runs.progress import Progress
from fastkd.trainer import zero
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.loading import check_tokens, load_student, load_teacher, load_tokenizer
from fastkd.trainer.teachers import TeacherSource
from fastkd.trainer.trainer import DistillationTrainer

ADAPTER = "adapter_config.json"


def evaluate(args: DistillationConfig) -> dict[str, Any]:
    """Measure ``model`` on ``eval_file``, write ``evaluate.json`` and ``evaluate.html`` to ``output_dir``.

    The report also covers the teacher, if ``teacher`` is set, and the control that the model's run left in
    ``model``/control. It has perplexity, cross-entropy and entropy of all of them, and, with a teacher,
    agreement and kd. For classifiers it has accuracy, F1 and confusion matrices. Models that answer (seq2seq,
    or causal_lm on data with prompts) decode greedily and with ``num_beams`` beams, and their answers are
    compared with the references.

    Args:
        args: the configuration; settings that concern training alone are ignored.

    Returns:
        The report.

    Raises:
        ValueError: no held-out data, a model that cannot be loaded, a setting that does not fit.
        OSError: ``output_dir`` cannot be written.
    """
    args = _looking_only(args)
    task = TASKS[args.task]
    if args.process_index == 0:
        require_writable(Path(str(args.output_dir)))
    rows = load_rows("eval_file", args)
    if rows is None:
        raise ValueError("eval_file is not set: give held-out data, or dataset and eval_split")
    settle_classes(args, rows)
    check_teacher(args)
    tokenizer = load_tokenizer(args)
    theirs = check_tokens(args, tokenizer)
    encoded = task.tokenize(rows, tokenizer, args, "eval_file", teacher_tokenizer=theirs)
    layout = task.layout_of(rows.column_names, "eval_file")
    size = text_bytes(encoded, tokenizer) if layout == ("text",) else 0
    asked = Asked.all_of(rows, tokenizer, args)
    look = Measuring(args, tokenizer, encoded, rows, asked, size)
    if theirs is not None:
        look.of_teacher(theirs, Asked.all_of(rows, theirs, args))
    student = load_model(args, str(args.model))
    # Loaded after the student, since with `teacher: base` it is the base model of the student's adapter.
    teacher = None if args.teacher is None else load_teacher(args, student)
    name = "model" if teacher is None else "student"
    found: dict[str, Any] = {**report.about(args, "evaluate"), "rows": len(rows)}
    found[name] = _part(look, name, student, teacher)
    if teacher is not None:
        found["teacher"] = look.at_teacher(name, found[name], teacher, student)
    control = Path(str(args.model)) / "control"
    if has_model(control):
        del student
        other = load_model(args, str(control))
        beside = load_teacher(args, other) if TeacherSource.parse(args.teacher).is_own else teacher
        found["control"] = _part(look, "control", other, beside)
    look.describe(found)
    if args.process_index == 0:
        folder = Path(str(args.output_dir))
        with writing_to(folder):
            path = report.write(folder, found, "evaluate")
        print(f"{report.text(found)}\nwrote {path} and {path.with_suffix('.html')}")
    return found


def has_model(folder: Path) -> bool:
    """Whether a model or an adapter was saved in this directory."""
    return any((folder / name).is_file() for name in ("config.json", ADAPTER)) and any(
        folder.glob("*.safetensors")
    )


def load_model(args: DistillationConfig, name: str) -> Any:
    """A trained model or adapter, as it was saved.

    Raises:
        ValueError: it cannot be loaded, or lacks weights.
    """
    args = copy.copy(args)
    args.model, args.model_init, args.peft_config = name, "pretrained", None
    return load_student(args, trained=True)


def _looking_only(args: DistillationConfig) -> DistillationConfig:
    """The configuration without the settings that only training needs."""
    args = copy.deepcopy(args)
    zero.leave(args)
    args.lmbda, args.gradient_match_weight, args.feature_matches = 0.0, 0.0, None
    args.load_best_model_at_end = False
    if args.teacher is None:
        args.kd_ratio = 0.0
    return args


def _part(look: Measuring, name: str, model: Any, teacher: Any) -> dict[str, Any]:
    """A model's part of the report."""
    args = copy.deepcopy(look.args)
    if teacher is None:
        args.kd_ratio = 0.0
    trainer = DistillationTrainer(model, teacher, args, None, None, look.encoded, look.tokenizer)
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    if not args.disable_tqdm:
        trainer.add_callback(Progress(name))
    look.watch(trainer)
    began = time.perf_counter()
    reset_peak_memory()
    found = {"parameters": model.num_parameters(), "fused_head": trainer.fused, **look.at(name, trainer)}
    return found | {"seconds": time.perf_counter() - began, "peak_memory_mb": peak_memory_mb()}
