"""``fastkd new``: the directory of a model that a run starts from, with its tokenizer."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from fastkd.corpora.tasks import TASKS
from fastkd.runs.new.folder import replacing, require_free
from fastkd.runs.new.from_nothing import TASKS_OF, from_nothing
from fastkd.runs.new.from_teacher import from_teacher, is_headless, task_of, teacher_config
from fastkd.runs.new.made import Made
from fastkd.runs.new.request import Request
from fastkd.runs.new.weights import same_weights
from fastkd.trainer.config import DistillationConfig

__all__ = ["Made", "Request", "make"]


def make(folder: Path, request: Request, args: DistillationConfig, given: Collection[str] = ()) -> Made:
    """Make a model, and write it with its tokenizer into a directory, whole or not at all.

    With ``architecture`` the model is made from nothing, else from the model that ``args.teacher`` names.

    Args:
        folder: the directory, which must be empty, or as an earlier call left it.
        request: the sizes.
        args: the settings of the run that will use the model; read are ``teacher``, ``task``, ``seed``, and
            those of the data.
        given: the names of the settings that the user gave. ``task`` follows from the model otherwise.

    Raises:
        ValueError: a directory with files of somebody else, or a request that cannot be met.
    """
    folder = folder.expanduser().resolve()
    require_free(folder)
    if request.architecture is None:
        if request.vocab_size is not None:
            raise ValueError("vocab_size is for --architecture: a smaller teacher keeps its tokenizer")
        if args.teacher is None:
            raise ValueError(
                "give --teacher, whose layers become the student's, or "
                f"--architecture ({', '.join(TASKS_OF)})"
            )
        if "task" not in given:
            args.task = task_of(teacher_config(args))
        made = from_teacher(request, args)
    else:
        if "task" not in given:
            args.task = TASKS_OF[request.architecture][0]
        longest = [getattr(args, name) for name in ("max_length", "max_target_length") if name in given]
        made = from_nothing(request, args, max(longest, default=0))
    with replacing(folder, _record(request, args, made)) as place, _without_bars():
        made.model.save_pretrained(place)
        if made.tokenizer is not None:
            made.tokenizer.save_pretrained(place)
        _check(place, made, args)
    return made


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Hides the bars of `transformers` for files that are written and read again."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _record(request: Request, args: DistillationConfig, made: Made) -> dict[str, Any]:
    asked = {name: value for name, value in dataclasses.asdict(request).items() if value is not None}
    read = ("teacher", "task", "seed", "train_file", "dataset")
    settings = {name: value for name in read if (value := getattr(args, name)) is not None}
    return {"command": "new", "settings": settings | asked, **made.summary()}


def _check(place: Path, made: Made, args: DistillationConfig) -> None:
    """Raise an error if the files do not give back the model and the tokenizer that were saved."""
    auto = AutoModel if is_headless(made.model.config, args.task) else TASKS[args.task].auto_class
    again, info = auto.from_pretrained(
        place, output_loading_info=True, trust_remote_code=args.trust_remote_code, use_safetensors=True
    )
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *map(str, info["mismatched_keys"])]
    if wrong or not same_weights(made.model, again):
        raise RuntimeError(
            f"the files of a {type(made.model).__name__} do not give the same model back "
            f"({wrong[0] if wrong else 'other weights'}): this family of models cannot be used here"
        )
    if made.tokenizer is not None:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=args.trust_remote_code)
        if tokenizer.get_vocab() != made.tokenizer.get_vocab():
            raise RuntimeError(
                "the saved tokenizer has another vocabulary: use another version of transformers"
            )
