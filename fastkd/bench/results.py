"""The file of a run: written after every measurement, and taken up again by the next call.

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
- ``ms``: the median; ``quantiles_ms``; ``calls``, how many were timed; ``input_sets`` that they went through;
- ``floor_ms``: before and after, of the same bytes at the speed of a copy, or of the bare matrix products;
- over logits ``gb_per_s``, the least bytes over the time, and ``copy_gb_per_s``, before and after;
- ``peak_extra_bytes``, where it was measured: the gradient included, the inputs not; where it could not be,
  ``no_memory_because``.
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
    """The entries so far, on disk after each.

    Args:
        folder: where ``results.json`` lies or will lie.
        run: all but the entries.
        fresh: start over although there is a file.

    Raises:
        ValueError: there is a file, of another machine or other versions.
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
        """What the file holds; but what failed or did not fit is tried again."""
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
        """Keep ``entries``, on disk too."""
        self.run["entries"] += entries
        self._done |= {_key(entry) for entry in entries}
        self.save()

    def save(self) -> None:
        """Write the file; whoever reads it meanwhile finds the old one or the new one, whole."""
        unfinished = self.path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(self.run, indent=1) + "\n")
        unfinished.replace(self.path)


def _versions(run: Run) -> str:
    return ", ".join(f"{name} {version}" for name, version in run["versions"].items())
