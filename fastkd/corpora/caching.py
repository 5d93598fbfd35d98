"""Errors of the directory in which `datasets` keeps the rows that it has read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from fastkd.directories import writing_to

P = ParamSpec("P")
R = TypeVar("R")


def names_the_cache(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function that reads rows say whose directory it is, if theirs cannot be written."""

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        from datasets import config

        with writing_to(Path(config.HF_DATASETS_CACHE), "HF_HOME"):
            return function(*args, **kwargs)

    return called
