"""Checks whether the files of student and teacher are there and whole, without loading them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fastkd.runs.doctor.findings import Case, Check, Finding
from fastkd.trainer.loading import trouble_in
from fastkd.trainer.loading.adapters import base_name
from fastkd.trainer.loading.names import expanded


def files(case: Case) -> Iterator[Finding]:
    """Directories without weights, weights that are cut off, and pointers of git-lfs in their place."""
    args = case.args
    sides = {"model": args.model if args.model_init == "pretrained" else None}
    if case.teacher.is_model:
        sides["teacher"] = case.teacher.name
    configs = {"model": case.student_config, "teacher": case.teacher_config}
    for field, name in sides.items():
        if name is None or configs[field] is None:  # reported where the configuration is read
            continue
        kwargs = args.model_init_kwargs if field == "model" else args.teacher_model_init_kwargs
        if isinstance(kwargs, dict) and kwargs.get("use_safetensors") is False:
            continue
        folder = Path(expanded(base_name(field, name)))
        if folder.is_dir() and (trouble := trouble_in(folder, field)) is not None:
            yield Finding("error", f"{field}_weights", f"{field} {name!r}: {trouble}")


CHECKS: tuple[Check, ...] = (files,)
