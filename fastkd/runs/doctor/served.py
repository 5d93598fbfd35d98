"""Checks whether a served teacher can teach the run."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from fastkd.runs.doctor.findings import Case, Check, Finding
from fastkd.trainer.teachers import ServedTeacher

# Seconds for which the doctor waits for a server that does not answer.
_PATIENCE = 5.0


def answers(case: Case) -> Iterator[Finding]:
    """Compares the server's model with the run, as the run itself will."""
    if not case.teacher.is_served or case.fast or case.tokenizer is None:
        return
    args = copy.copy(case.args)
    args.teacher_patience = min(args.teacher_patience, _PATIENCE)
    try:
        teacher = ServedTeacher(args)
        teacher.check(args, case.tokenizer)
    except ValueError as error:
        yield Finding("error", "served", str(error))
        return
    yield Finding(
        "note",
        "served",
        f"the server at {args.teacher} has {teacher.model.name}, with the student's tokens and "
        f"{teacher.ahead.entries} log-probabilities of each",
    )


CHECKS: tuple[Check, ...] = (answers,)
