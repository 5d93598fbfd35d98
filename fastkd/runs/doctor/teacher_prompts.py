"""Checks that the teacher has room for the prompts that it alone reads (``teacher_prompt``)."""

from __future__ import annotations

from collections.abc import Iterator

from fastkd.corpora.sample import MOST, Sample
from fastkd.corpora.tasks import TASKS
from fastkd.runs.doctor.findings import Case, Check, Finding, Severity
from fastkd.trainer.prompt_limits import problem, prompted_length
from fastkd.trainer.row_limits import trained_positions, windows


def room(case: Case) -> Iterator[Finding]:
    """Prompts of the teacher that are, with the answer, longer than its positions."""
    own = case.teacher.is_self
    config = case.student_config if own else case.teacher_config
    model = case.student_without_weights if own else case.teacher_without_weights
    if case.args.teacher_prompt is None or config is None or model is None:
        return
    window, trained = windows(model)[0], trained_positions(config)
    for sample in (case.train, case.held_out):
        longest = 0 if sample is None else _longest(case, sample)
        wrong = problem(longest, trained if window is None else window, TASKS[case.args.task], "teacher")
        if sample is not None and wrong is not None:
            severity: Severity = "warning" if window is None else "error"
            yield Finding(severity, "teacher_prompt_positions", f"{sample.field}: {wrong[0]}", wrong[1])


def _longest(case: Case, sample: Sample) -> int:
    """The most tokens that the teacher reads for one of the rows looked at; 0 if they cannot be encoded."""
    args, task = case.args, TASKS[case.args.task]
    step = max(1, -(-len(sample.data) // MOST))  # as the sample was chosen
    found = 0
    for number, made in enumerate(sample.encoded):
        if made is None:
            continue
        try:
            prompt = task.prompt_of_teacher(sample.data[number * step], sample.layout, case.tokenizer, args)
        except (ValueError, TypeError, KeyError, AttributeError):
            return 0  # the run says which row it refuses
        found = max(found, prompted_length(len(prompt), made["labels"], task, args))
    return found


CHECKS: tuple[Check, ...] = (room,)
