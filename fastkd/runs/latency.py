"""How long a classifier takes for one text, as in answering requests one by one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from fastkd.corpora.contexts import evaluating
from fastkd.corpora.tasks import Task
from fastkd.runs.answers import spread

# Held-out texts that are timed, and those of them that run once before, untimed.
ROWS = 50
WARM_UP = 3


@torch.no_grad()
def latency(model: Any, task: Task, rows: Any, collate: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """The median milliseconds of a forward of one text, and texts per second, at ``batch_size`` 1.

    Args:
        model: a model of `transformers` or `peft` on its device; it is timed in eval mode.
        task: its task.
        rows: encoded rows, of which some, evenly spread, are timed.
        collate: makes a batch of rows.
    """
    device = model.device
    chosen = [rows[i] for i in spread(len(rows), min(ROWS, len(rows)))]
    seconds = []
    with evaluating(model):
        for row in [*chosen[:WARM_UP], *chosen]:
            batch = {name: x.to(device) for name, x in collate([row]).items() if torch.is_tensor(x)}
            inputs = task.model_inputs(model, batch)
            _wait(device)
            began = time.perf_counter()
            model(**inputs)
            _wait(device)
            seconds.append(time.perf_counter() - began)
    timed = seconds[len(chosen[:WARM_UP]) :]
    return {
        "batch_size": 1,
        "rows": len(timed),
        "median_ms": 1000 * statistics.median(timed),
        "rows_per_second": len(timed) / sum(timed),
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
