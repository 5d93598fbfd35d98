"""Keeps what the page needs of the reports, one file for each task.

The examples' own output is large and stays on the machine that made it. With these files the page can be
written anywhere, and tasks may be run on different days.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from bench.tasks.description import MODELS, Task

# Parts of a model's report that the page reads, and those facts of the machine that say how fast it is.
_GROUPS = ("eval", "greedy", "beam", "latency")
_FACTS = ("parameters", "steps", "seconds_per_step", "peak_memory_mb")
_MACHINE = ("device", "threads", "processes", "backend")
# Directory of the estimates, below the directory that holds the runs.
_ESTIMATES = "estimates"
# The name of a cached teacher begins with this.
_CACHED = "cache:"

Record = dict[str, Any]


def gathered(task: Task, folder: Path) -> dict[str, Record]:
    """The records of a task's runs by the run's directory: those kept in ``folder``, brought up to date.

    A run that has reports now replaces the record that was kept of it.

    Args:
        task: the task.
        folder: of the files ``TASK.json``, one of which is written if there is any record.

    Raises:
        ValueError: a report or a kept file is no JSON.
    """
    kept = folder / f"{task.folder.name}.json"
    known: dict[str, Record] = _read(kept) or {}
    found = {}
    for name in dict.fromkeys(run.report for run in task.runs):
        made = _record(task.folder, name)
        if made["reports"] or name in known:
            found[name] = made if made["reports"] else known[name]
            if (estimate := _estimate(task.folder / name)) is not None:
                found[name]["estimate"] = estimate
    text = json.dumps(found, indent=1, sort_keys=True) + "\n"
    if found:
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(text, "utf-8")
    # As it will be read the next time, so that the page is the same.
    same: dict[str, Record] = json.loads(text)
    return same


def _record(task: Path, name: str) -> Record:
    """Where a run was repeated with several seeds, the summary beside their reports is not kept."""
    place = task / name
    head = _read(place / "report.json")
    seeds = [_read(path) for path in sorted(place.glob("seed-*/report.json"), key=_seed)] or [head]
    whole = [report for report in seeds if report is not None and _has_ended(report)]
    first = head if head is not None else whole[0] if whole else {}
    record: Record = {"command": first.get("repeat"), "reports": [_reduced(report) for report in whole]}
    if whole and (cache := _cache(task, whole[0])) is not None:
        record["cache"] = cache
    return record


def _cache(task: Path, report: Record) -> Record | None:
    """The contents of the cache that a run read, by its manifest; None where the teacher was a model."""
    teacher = str((report.get("configuration") or {}).get("teacher"))
    if not teacher.startswith(_CACHED):
        return None
    folder = teacher.removeprefix(_CACHED)
    made = _read(task / folder / "train" / "manifest.json")
    if made is None:
        return None
    held = (made.get("notes") or {}).get("held") or {}
    entries, at_1 = held.get("entries_per_token"), (held.get("mass") or {}).get("1") or {}
    return {
        "folder": folder,
        "kind": made["kind"],
        "bytes_per_token": made["bytes_per_token"],
        "entries": entries,
        "mass": at_1.get("mean"),
    }


def _reduced(report: Record) -> Record:
    found: Record = {
        "machine": {name: x for name, x in (report.get("machine") or {}).items() if name in _MACHINE},
        "versions": report.get("versions") or {},
    }
    for model in MODELS:
        if isinstance(part := report.get(model), dict):
            found[model] = {name: part[name] for name in _FACTS if _is_number(part.get(name))}
            for group in _GROUPS:
                scores = {key: x for key, x in (part.get(group) or {}).items() if _is_number(x)}
                if scores:
                    found[model][group] = scores
    return found


def _estimate(place: Path) -> Record | None:
    """The peak, in MB, and the range of seconds per step that ``fastkd estimate --json`` has foretold."""
    found = _read(place.parent / _ESTIMATES / f"{place.name}.json")
    if found is None:
        return None
    peak = found["tried_bytes"] or found["step"]["peak_bytes"] + found["process_bytes"]
    return {"peak_memory_mb": peak / 2**20, "seconds_per_step": found["seconds_per_step"]}


def _seed(path: Path) -> tuple[int, str]:
    name = path.parent.name.removeprefix("seed-")
    return (int(name) if name.isdigit() else 0, name)


def _read(path: Path) -> Record | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no report")
    return found


def _has_ended(report: Record) -> bool:
    return "unfinished" not in report and "failed" not in report


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)
