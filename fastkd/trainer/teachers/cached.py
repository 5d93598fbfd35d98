"""A teacher that was run before: its distributions are read from a cache, and it is never loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fastkd.trainer.views import NOTHING_MORE, Batch, View, Wanted


class CachedTeacher:
    """Reads what ``fastkd cache`` wrote.

    Args:
        folder: of the cache.
    """

    live = False

    def __init__(self, folder: Path) -> None:
        raise ValueError("cached teachers are not available yet")

    columns: int

    def to(self, device: torch.device) -> None: ...

    def __call__(self, batch: Batch, wanted: Wanted = NOTHING_MORE) -> View: ...

    def attach(self, train: Any, held_out: Any, collator: Any) -> tuple[Any, Any, Any]:
        """The data sets, checked against the cache row by row, and a collator that adds the teacher's
        side.
        """
        return train, held_out, collator
