"""The data of a run, and the classes that its models and its rows know."""

from __future__ import annotations

from typing import Any

from fastkd.corpora.rows import class_names, load_rows
from fastkd.corpora.sample import Sample, look
from fastkd.corpora.tasks import TASKS
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.loading import read_config
from fastkd.trainer.loading.models import unnamed
from fastkd.trainer.teachers import CachedTeacher, TeacherSource


def known_classes(args: DistillationConfig) -> list[str] | None:
    """The class names of the configuration, else of the teacher, else of the student; None without any."""
    if args.class_names:
        return args.class_names
    for field in ("teacher", "model"):
        source = TeacherSource.parse(getattr(args, field))
        if source.cache is not None:
            stored = CachedTeacher(source.cache).made_from.get("class_names")
            if stored:
                return list(stored)
        if not source.is_model:
            continue
        try:
            config = read_config(field, source.name, args)
        except ValueError:
            continue  # reported where the model is loaded
        names = list((config.id2label or {}).values())
        if names and not unnamed(names):
            return names
    return None


def name_classes(args: DistillationConfig, rows: Any) -> None:
    """Set ``args.class_names`` of a classification that does not name its classes, from models or rows."""
    if args.task == "classification":
        args.class_names = known_classes(args) or class_names(rows)


def look_at(field: str, args: DistillationConfig, tokenizer: Any) -> Sample | None:
    """A sample of ``train_file`` or ``eval_file``; None if there is no such data. For classification it sets
    ``args.class_names`` if unset.

    Raises:
        ValueError: data that cannot be read.
    """
    data = load_rows(field, args)
    if data is None:
        return None
    name_classes(args, data)
    return look(field, data, TASKS[args.task], args, tokenizer, needs_answer(field, args))


def needs_answer(field: str, args: DistillationConfig) -> bool:
    """Whether the rows of ``train_file`` or ``eval_file`` need answers. Those that a run trains on do not if
    the student answers in every step, and no control is trained on the data's answers.
    """
    return field != "train_file" or args.lmbda < 1 or args.control
