"""Checks whether the teacher is better than the student, and the losses' balance, on a few rows. This theme
loads weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from tqdm.auto import tqdm

from fastkd.corpora.labels import IGNORE_INDEX, MULTI_LABEL, REGRESSION, column_order, is_unlabelled
from fastkd.corpora.tasks import TASKS
from fastkd.runs.classes import check_teacher
from fastkd.runs.doctor import matches
from fastkd.runs.doctor.findings import Case, Check, Finding
from fastkd.runs.doctor.machine import head_finding
from fastkd.trainer.classes import named_classes
from fastkd.trainer.crossing import teachers_rows
from fastkd.trainer.heads import find_linear_head
from fastkd.trainer.loading import load_student, load_teacher_model
from fastkd.trainer.models import LinearHead, forward, multiply_out
from fastkd.trainer.objective import means, measure
from fastkd.trainer.sides import name_padding, padding_token

ROWS, AT_ONCE = 64, 8
# A teacher counts as guessing if its cross-entropy is above this fraction of a uniform guess's.
CHANCE = 0.98


def quality(case: Case) -> Iterator[Finding]:
    """A teacher no better than the student or than a guess; a student whose logits are not its head's;
    matches that drown the loss on the logits.
    """
    sample = case.held_out or case.train
    if case.fast or sample is None or not sample.kept or case.troubles:
        return
    try:
        student = load_student(case.args)
    except (ValueError, OSError, RuntimeError) as error:
        yield Finding("error", "student", " ".join(str(error).split()))
        return
    if case.args.task != "classification" and case.args.fused_head != "false":
        head = find_linear_head(student)
        if not isinstance(head, LinearHead) and "not those of its linear head" in head:
            yield head_finding(case, head)
    if not case.teacher.is_model or not sample.needs_answer:  # prompts alone say nothing of a teacher
        return
    try:
        teacher = load_teacher_model(case.args)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        yield Finding("error", "teacher", " ".join(str(error).split()))
        return
    rows = sample.rows_of_batches(case.args)
    rows = rows[:: max(1, len(rows) // ROWS)][:ROWS]
    if case.args.task == "classification":
        rows = [row for row in rows if not is_unlabelled(row["labels"])]
        if not rows:
            return
        try:
            check_teacher(case.args)
        except ValueError:  # reported with the classes
            return
    yield from matches.drowned(case, student, teacher, rows[:AT_ONCE])
    own = measured(case, student, rows, "student")
    if case.crossed is None:
        other = measured(case, teacher, rows, "teacher")
    else:
        other = _of_own_tokens(case, teacher, rows)
    where = f"on {len(rows)} rows of {sample.field}"
    classifies = case.args.task == "classification"
    name, form, guess = "perplexity", "{:,.2f}", math.log(len(case.tokenizer))
    if case.args.problem_type == REGRESSION:
        name, form, guess = "mse", "{:.4g}", math.inf
        own["ce"], other["ce"] = own[name], other[name]
    elif classifies:
        name, form = "accuracy", "{:.1%}"
        guess = math.log(2 if case.args.problem_type == MULTI_LABEL else int(teacher.config.num_labels or 1))
    if not math.isfinite(other["ce"]):
        yield Finding(
            "error", "teacher_nan", f"the teacher gives no finite loss {where}", "load it in another dtype"
        )
    elif other["ce"] > CHANCE * guess:
        yield Finding(
            "warning",
            "teacher_guesses",
            f"the teacher is no better than a guess {where}: its cross-entropy is {other['ce']:.2f}, "
            f"that of a guess {guess:.2f}",
            "train the teacher first (fastkd train), or check its weights and class_names",
        )
    elif _no_better(own, other, name):
        yield Finding(
            "warning",
            "teacher_no_better",
            f"the teacher is no better than the student {where}: {name} {form.format(other[name])} and "
            f"{form.format(own[name])}, with kd_ratio: {case.args.kd_ratio}",
            "choose or train a better teacher, or set kd_ratio: 0",
        )
    else:
        yield Finding(
            "note",
            "teacher_better",
            f"{where}, {name} is {form.format(other[name])} for the teacher and {form.format(own[name])} "
            "for the student before training",
        )


def _of_own_tokens(case: Case, teacher: Any, rows: list[Any]) -> dict[str, float]:
    """The figures of a teacher with a tokenizer of its own, per token of the student's."""
    theirs = teachers_rows(rows)
    found = measured(case, teacher, theirs, "teacher")
    first = int(case.args.task == "causal_lm")  # the first label of a row has no position that predicts it
    counts = [
        sum(label != IGNORE_INDEX for row in side for label in row["labels"][first:])
        for side in (theirs, rows)
    ]
    found["ce"] *= counts[0] / max(1, counts[1])
    found["perplexity"] = math.exp(min(found["ce"], 700))
    return found


def _no_better(student: dict[str, float], teacher: dict[str, float], name: str) -> bool:
    if name == "accuracy" and student["accuracy"] != teacher["accuracy"]:
        return teacher["accuracy"] < student["accuracy"]
    return teacher["ce"] >= student["ce"]


@torch.no_grad()
def measured(case: Case, model: Any, rows: list[Any], title: str) -> dict[str, float]:
    """A model's own loss and accuracy or perplexity on encoded rows."""
    task = TASKS[case.args.task]
    model = model.eval()
    if getattr(model, "hf_device_map", None) is None and not getattr(model, "is_quantized", False):
        model = model.to(case.args.device)
    options: dict[str, Any] = {"kd_ratio": 0.0, "label_smoothing": 0.0, "vocab_size": None}
    totals: dict[str, float] = {}
    pad = padding_token(model, case.tokenizer)
    order = None
    if task.name == "classification":
        options["problem_type"] = model.config.problem_type = case.args.problem_type
        name_padding({title: model}, pad)
        names, theirs = case.args.class_names, named_classes(model.config)
        order = column_order(names, theirs) if names and theirs else None
    for start in tqdm(range(0, len(rows), AT_ONCE), desc=f"trying the {title}", delay=3, leave=False):
        batch = task.collate(rows[start : start + AT_ONCE], pad)
        batch = {name: value.to(model.device) for name, value in batch.items()}
        output = forward(model, None, task.model_inputs(model, batch))
        logits = multiply_out(output.distribution)  # type: ignore[arg-type]
        if order is not None:  # a multi-label model has two columns for each class
            where = -2 if case.args.problem_type == MULTI_LABEL else -1
            logits = logits.index_select(where, torch.tensor(order, device=logits.device))
        for name, value in measure(logits, None, task.targets(batch["labels"]), options).items():
            totals[name] = totals.get(name, 0.0) + float(value)
    return means(totals)


CHECKS: tuple[Check, ...] = (quality,)
