"""Keeps the file of a run, which is written after every measurement and resumed by the next call.

``results.json`` holds ``format`` (2), ``device``, ``device_type``, ``date``, ``commands``, ``versions``,
``backends`` (why one is missing), ``absent`` (peers, with the reason), ``peers`` (what each computes),
``temperature``, ``cases_left`` (not started when time ran out), and ``entries``. An entry is one route on one
case:

- ``vocab``, ``tokens``, ``dtype``, ``device``, ``student_width``, ``teacher_width`` (0 for logits),
  ``divergence``, ``kd_ratio``, ``backward``, ``op``, ``route``, ``ours``, ``allocator``, ``logits_bytes``;
- ``status``: ``ok``, ``wrong`` (further from the oracle than ``allowed_errors``), ``skipped`` (memory) or
  ``failed``, the last three with a ``reason`` and no time;
- ``value_error``, ``gradient_error``: relative, against float64 (null where NaN; the gradient's also where
  none is wanted);
- ``ms``: the median; ``quantiles_ms``; ``calls``, the number of timed calls; ``input_sets``, the number of
  sets of inputs that they went through;
- ``floor_ms``: before and after, for the same bytes at the speed of a copy, or for the matrix products alone;
- over logits ``gb_per_s``, the bytes that must move over the time, and ``copy_gb_per_s``, before and after;
- ``peak_extra_bytes``, the gradient included and the inputs not, where it was measured; ``no_memory_because``
  where it could not be.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastkd.bench.cases import Case
from fastkd.bench.measure import Entry
from fastkd.bench.routes import Route

FORMAT = 2
NAME = "results.json"
REMEDY = "name another folder with --out, or pass --fresh to start over"

Run = dict[str, Any]


def _key(entry: Entry) -> tuple[Any, ...]:
    case = (entry[name] for name in Case.__dataclass_fields__)
    return (*case, entry["route"], entry["allocator"])


class Results:
    """The entries so far, written to disk after each addition.

    Args:
        folder: directory of ``results.json``, which need not exist yet.
        run: all fields of the file except the entries.
        fresh: start over even if the file exists.

    Raises:
        ValueError: the file exists, but has another format, or is of another machine or other versions.
    """

    def __init__(self, folder: Path, run: Run, fresh: bool = False) -> None:
        self.path = folder / NAME
        self.run = {"format": FORMAT, **run, "cases_left": 0, "entries": []}
        if self.path.exists() and not fresh:
            self._take_up()
        self.taken_up = len(self.run["entries"])
        self._done = {_key(entry) for entry in self.run["entries"]}
        folder.mkdir(parents=True, exist_ok=True)
        self.save()

    def _take_up(self) -> None:
        """Load the entries of the file, except those that failed or did not fit, which are measured again."""
        try:
            earlier = json.loads(self.path.read_text())
            if not isinstance(earlier, dict) or earlier.get("format") != FORMAT:
                raise ValueError("not of this format")
        except ValueError as error:
            raise ValueError(f"{self.path} is no file of this benchmark ({error}): {REMEDY}") from error
        for what in ("device", "versions"):
            if earlier[what] != self.run[what]:
                raise ValueError(
                    f"{self.path} was measured on {earlier['device']} with {_versions(earlier)}; here it is "
                    f"{self.run['device']} with {_versions(self.run)}: {REMEDY}"
                )
        self.run["entries"] = [entry for entry in earlier["entries"] if "ms" in entry]
        self.run["commands"] = list(dict.fromkeys((*earlier["commands"], *self.run["commands"])))
        self.run["peers"] = {**earlier["peers"], **self.run["peers"]}

    def has(self, case: Case, route: Route, allocator: str = "default") -> bool:
        entry = {**case.__dict__, "route": route.name, "allocator": allocator}
        return _key(entry) in self._done

    def add(self, *entries: Entry) -> None:
        """Add ``entries`` and write the file."""
        self.run["entries"] += entries
        self._done |= {_key(entry) for entry in entries}
        self.save()

    def save(self) -> None:
        """Replace the file in one step, so that a reader sees the whole old file or the whole new one."""
        unfinished = self.path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(self.run, indent=1) + "\n")
        unfinished.replace(self.path)


def _versions(run: Run) -> str:
    return ", ".join(f"{name} {version}" for name, version in run["versions"].items())
