"""Checks the directory that the run writes into."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

from fastkd.directories import unwritable
from fastkd.runs.doctor.findings import Case, Check, Finding
from fastkd.runs.output_directory import open_record
from fastkd.runs.seed_records import open_seeds
from fastkd.trainer.config import plain


def place(case: Case) -> Iterator[Finding]:
    """An ``output_dir`` that the run would refuse: an input, another run's, or one that cannot be written."""
    folder = Path(str(case.args.output_dir))
    if (reason := unwritable(folder)) is not None:
        yield Finding(
            "error", "output_unwritable", f"output_dir {str(folder)!r}: {reason}", "give another output_dir"
        )
        return
    args = copy.copy(case.args)
    if args.teacher is None:  # then the command is fastkd train, which sets these
        args.kd_ratio, args.control = 0.0, False
    try:
        open_record(args) if args.seeds == 1 else open_seeds(args)
    except ValueError as error:
        found, _, remedy = str(error).rpartition(": ")
        yield Finding("error", "output_taken", found, remedy)


def optimizer_state(case: Case) -> Iterator[Finding]:
    """Checkpoints from which a run cannot be resumed exactly."""
    if case.args.save_only_model and plain(case.args.save_strategy) != "no":
        yield Finding(
            "note",
            "save_only_model",
            "save_only_model: true leaves the optimizer's state out of the checkpoints: a run that resumes "
            "from one ends with other weights than a run that was not interrupted",
            "leave it out, if the run may be interrupted",
        )


CHECKS: tuple[Check, ...] = (place, optimizer_state)
