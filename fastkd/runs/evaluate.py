"""``fastkd evaluate``: measures a model on held-out data, with its teacher and the control of its run."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from torch import nn
from transformers import PrinterCallback, ProgressCallback

from fastkd.corpora.decode import Answer, Question, asks, decode, questions
from fastkd.corpora.labels import MULTI_LABEL, REGRESSION, column_order
from fastkd.corpora.rows import load_rows
from fastkd.corpora.tasks import IGNORE_INDEX, TASKS
from fastkd.directories import require_writable, writing_to
from fastkd.runs import report, scores
from fastkd.runs.classes import check_teacher, settle_classes
from fastkd.runs.clock import peak_memory_mb, reset_peak_memory
from fastkd.runs.progress import Progress
from fastkd.trainer import zero
from fastkd.trainer.classes import named_classes
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.loading import check_tokens, load_student, load_teacher, load_tokenizer
from fastkd.trainer.teachers import BaseTeacher, TeacherSource
from fastkd.trainer.trainer import DistillationTrainer

ADAPTER = "adapter_config.json"
SAMPLES = 8


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
    check_tokens(args, tokenizer)
    encoded = task.tokenize(rows, tokenizer, args, "eval_file")
    layout = task.layout_of(rows.column_names, "eval_file")
    asked = questions(rows, task, tokenizer, args, "eval_file") if asks(task, layout) else []

    look = _Look(args, tokenizer, encoded, asked, _bytes(encoded, tokenizer) if layout == ("text",) else 0)
    student = load_model(args, str(args.model))
    # Loaded after the student, since with `teacher: base` it is the base model of the student's adapter.
    teacher = None if args.teacher is None else load_teacher(args, student)
    name = "model" if teacher is None else "student"
    found: dict[str, Any] = {**report.about(args, "evaluate"), "rows": len(rows)}
    answers: dict[str, dict[str, list[str]]] = {}
    found[name], answers[name] = look.at(name, student, teacher)
    if teacher is not None:
        found["teacher"], said = look.at_teacher(student, teacher, found[name]["eval"])
        answers |= {"teacher": said} if said else {}
    control = Path(str(args.model)) / "control"
    if has_model(control):
        del student
        other = load_model(args, str(control))
        is_base = TeacherSource.parse(args.teacher).is_base
        beside = load_teacher(args, other) if is_base else teacher
        found["control"], answers["control"] = look.at("control", other, beside)
    shares(found)
    if asked:
        references = [question.reference for question in asked]
        found["signatures"] = scores.signatures(references)
        found["samples"] = _samples(
            asked, {who: answers[who] for who in report.parts(found) if who in answers}
        )
    if args.process_index == 0:
        folder = Path(str(args.output_dir))
        with writing_to(folder):
            path = report.write(folder, found, "evaluate")
        print(report.table(report.rows(found)))
        if asked:
            print("\n" + report.table(report.writing_rows(found), report.WRITING))
        print(f"\n{report.verdict(found)}\nwrote {path} and {path.with_suffix('.html')}")
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


# The figures by which a classifier is judged, in addition to those that the trainer measures.
QUALITY = (
    *("accuracy", "macro_f1", "micro_f1", "exact_match"),
    *("mse", "mae", "pearson", "spearman"),
)


def classified(trainer: DistillationTrainer, order: Sequence[int] | None = None) -> dict[str, Any]:
    """Measure a classifier on the trainer's held-out data: its part of a report, ``eval`` and, unless it
    predicts numbers, ``classes``.

    Args:
        trainer: with the held-out data.
        order: for each class of the data the model's column; None for the same order.
    """
    rows: Any = trainer.eval_dataset
    output = trainer.predict(rows, metric_key_prefix="eval")
    predictions, labels = np.asarray(output.predictions), np.asarray(output.label_ids)
    if order is not None:
        predictions = predictions[:, list(order)]
    config: Any = trainer.student.config
    args: Any = trainer.args
    names = args.class_names or [config.id2label[i] for i in range(config.num_labels)]
    if config.problem_type == REGRESSION:
        scored: dict[str, Any] = scores.regression(labels, predictions)
    elif config.problem_type == MULTI_LABEL:
        scored = scores.multi_label(labels, predictions > 0, names)
    else:
        matrix = scores.confusion(labels.tolist(), predictions.argmax(-1).tolist(), config.num_labels)
        scored = scores.classification(matrix, names)
    measured = named(output.metrics or {})
    measured |= {key: scored[key] for key in QUALITY if scored.get(key) is not None}
    classes = {key: scored[key] for key in ("f1", "classes", "confusion") if key in scored}
    return {"eval": measured, **({"classes": classes} if classes else {})}


def named(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics of an evaluation, under the names that a report uses."""
    found = {name.removeprefix("eval_"): value for name, value in metrics.items()}
    for name in ("epoch", "model_preparation_time"):
        found.pop(name, None)
    return found


class _Look:
    """The data and prompts that all models are measured on, and the way in which each is measured."""

    def __init__(
        self,
        args: DistillationConfig,
        tokenizer: Any,
        encoded: Any,
        asked: Sequence[Question],
        size: int,
    ) -> None:
        self.args, self.tokenizer, self.encoded, self.asked, self.bytes = (
            args,
            tokenizer,
            encoded,
            asked,
            size,
        )
        self.task = TASKS[args.task]

    def at(self, name: str, model: Any, teacher: Any) -> tuple[dict[str, Any], dict[str, list[str]]]:
        """A model's part of the report, and its answers by decoding method (``greedy`` or ``beam``)."""
        began = time.perf_counter()
        reset_peak_memory()
        trainer = self._trainer(name, model, teacher)
        found = {
            "parameters": model.num_parameters(),
            "fused_head": trainer.fused,
            **self._measured(trainer),
        }
        written, answers = self._written(name, model)
        found |= written
        found |= {"seconds": time.perf_counter() - began, "peak_memory_mb": peak_memory_mb()}
        return found, answers

    def at_teacher(
        self, student: Any, teacher: Any, measured: dict[str, float]
    ) -> tuple[dict[str, Any], dict[str, list[str]]]:
        """As :meth:`at`, for the teacher, whose perplexity was measured together with the student's."""
        own = isinstance(teacher, nn.Module)
        found = report.teacher_part(measured, teacher.num_parameters() if own else None)
        if not own and not isinstance(teacher, BaseTeacher):  # nothing more can be measured of a cache
            return found, {}
        model = teacher if own else student
        began = time.perf_counter()
        reset_peak_memory()
        with contextlib.nullcontext() if own else student.disable_adapter():
            if self.task.name == "classification":
                scored = self._classified_teacher(model)
                found["eval"] |= {key: scored["eval"][key] for key in QUALITY if key in scored["eval"]}
                found |= {key: value for key, value in scored.items() if key == "classes"}
            written, answers = self._written("teacher", model)
        found |= written
        if answers or self.task.name == "classification":
            found |= {"seconds": time.perf_counter() - began, "peak_memory_mb": peak_memory_mb()}
        return found, answers

    def _classified_teacher(self, model: Any) -> dict[str, Any]:
        """The teacher measured as a model of its own, whose classes may have another order than the data."""
        names, theirs = self.args.class_names, named_classes(model.config)
        alone = copy.copy(self)
        alone.args = copy.copy(self.args)
        alone.args.class_names = None  # they are not in the teacher's order
        trainer = alone._trainer("teacher", model, None)
        args: Any = trainer.args
        args.class_names = names
        return classified(trainer, column_order(names, theirs) if names and theirs else None)

    def _trainer(self, name: str, model: Any, teacher: Any) -> DistillationTrainer:
        args = copy.deepcopy(self.args)
        if teacher is None:
            args.kd_ratio = 0.0
        trainer = DistillationTrainer(model, teacher, args, None, None, self.encoded, self.tokenizer)
        for printer in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(printer)
        if not args.disable_tqdm:
            trainer.add_callback(Progress(name))
        return trainer

    def _measured(self, trainer: DistillationTrainer) -> dict[str, Any]:
        if self.task.name == "classification":
            return classified(trainer)
        found = named(trainer.evaluate())
        if self.bytes and "ce" in found:
            tokens = sum(_predicted(row) for row in self.encoded["labels"])
            found["bits_per_byte"] = found["ce"] * tokens / math.log(2) / self.bytes
        return {"eval": found}

    def _written(self, name: str, model: Any) -> tuple[dict[str, Any], dict[str, list[str]]]:
        found: dict[str, Any] = {}
        answers: dict[str, list[str]] = {}
        if not self.asked:
            return found, answers
        beams = {"greedy": 1, "beam": self.args.num_beams}
        for how, number in beams.items():
            if how == "greedy" or number > 1:
                title = f"{name}, " + (how if number == 1 else f"{number} beams")
                found[how], answers[how] = self._decoded(title, model, number)
        return found, answers

    def _decoded(self, title: str, model: Any, beams: int) -> tuple[dict[str, Any], list[str]]:
        """Each process decodes a part of the prompts; afterwards every process has all answers."""
        args = self.args
        mine = list(range(args.process_index, len(self.asked), args.world_size))
        shown = None if args.disable_tqdm or args.process_index else title
        began = time.perf_counter()
        decoding = decode(
            *(model, self.task, self.tokenizer, [self.asked[i].ids for i in mine]),
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
            **scores.texts(said, [question.reference for question in self.asked]),
            "mean_length": tokens / len(answers),
            "hit_limit": sum(not answer.complete for answer in answers) / len(answers),
            "tokens_per_second": tokens / seconds,
        }
        return found, said


def _bytes(encoded: Any, tokenizer: Any) -> int:
    """UTF-8 bytes of all predicted text. The ends of texts are predicted too, but they have no bytes."""
    total = 0
    for row in encoded["labels"]:
        said = [token for token in row[1:] if token != IGNORE_INDEX]
        total += len(tokenizer.decode(said, skip_special_tokens=True).encode())
    return total


def _predicted(labels: Sequence[int]) -> int:
    return sum(label != IGNORE_INDEX for label in labels[1:])


def shares(found: dict[str, Any]) -> None:
    """Add ``bleu_share`` to each model's part: its BLEU divided by the teacher's."""
    teacher = found.get("teacher", {})
    for name, part in report.parts(found).items():
        for how in ("greedy", "beam"):
            if name != "teacher" and how in part and teacher.get(how, {}).get("bleu"):
                part[how]["bleu_share"] = part[how]["bleu"] / teacher[how]["bleu"]


def _samples(asked: Sequence[Question], answers: dict[str, dict[str, list[str]]]) -> list[dict[str, Any]]:
    """A few answers, evenly spread over the data."""
    return [
        {
            "row": asked[i].row,
            "source": asked[i].source,
            "reference": asked[i].reference,
            "answers": {who: {how: said[i] for how, said in found.items()} for who, found in answers.items()},
        }
        for i in _spread(len(asked), SAMPLES)
    ]


def _spread(total: int, wanted: int) -> Iterator[int]:
    yield from sorted({i * total // wanted for i in range(wanted)})
