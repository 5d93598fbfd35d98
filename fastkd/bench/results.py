"""Keeps the file of a run, which is written after every measurement and resumed by the next call.

``results.json`` holds ``format`` (2), ``device``, ``device_type``, ``threads``, ``date``, ``commands``,
``versions``, ``backends`` (why one is missing), ``absent`` (peers, with the reason), ``peers`` (what each
computes), ``temperature``, ``cases_left`` (not started when time ran out), ``entries`` and ``variants``. An
entry is one route on one case:

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
  where it could not be. An entry whose ``allocator`` is null has a peak and no time.

A variant is ``kd_loss`` in another form, in one allocator mode: ``variant``, ``dtype``, ``vocab``,
``tokens``, ``device``, ``allocator``, ``status``, ``gradient_error``, and, as above, ``ms``,
``quantiles_ms``, ``calls``, ``floor_ms``, ``gb_per_s``, ``copy_gb_per_s``; ``ns_per_element`` is the time
per logit of one side.
The entries in ``bench/results`` may lack the newer fields of both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastkd.bench.cases import Case
from fastkd.bench.measure import Entry

FORMAT = 2
NAME = "results.json"
REMEDY = "name another folder with --out, or pass --fresh to start over"

Run = dict[str, Any]


def _key(entry: Entry) -> tuple[Any, ...]:
    fields: tuple[str, ...] = ("variant", "dtype", "vocab", "tokens", "device")
    if "variant" not in entry:
        fields = (*Case.__dataclass_fields__, "route")
    return (*(entry[name] for name in fields), entry["allocator"])


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
        self.run = {"format": FORMAT, **run, "cases_left": 0, "entries": [], "variants": []}
        if self.path.exists() and not fresh:
            self._take_up()
        self.taken_up = [*self.run["entries"], *self.run["variants"]]
        self._done = {_key(entry) for entry in self.taken_up}
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
        for kind in ("entries", "variants"):
            found = earlier.get(kind, [])
            self.run[kind] = [entry for entry in found if "ms" in entry or "peak_extra_bytes" in entry]
        self.run["commands"] = list(dict.fromkeys((*earlier["commands"], *self.run["commands"])))
        self.run["peers"] = {**earlier["peers"], **self.run["peers"]}

    def has(self, entry: Entry) -> bool:
        """Whether there is a measurement of what the (blank) entry describes."""
        return _key(entry) in self._done

    def add(self, *entries: Entry) -> None:
        """Add entries or variants, and write the file."""
        for entry in entries:
            self.run["variants" if "variant" in entry else "entries"].append(entry)
            self._done.add(_key(entry))
        self.save()

    def save(self) -> None:
        """Replace the file in one step, so that a reader sees the whole old file or the whole new one."""
        unfinished = self.path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(self.run, indent=1) + "\n")
        unfinished.replace(self.path)


def _versions(run: Run) -> str:
    return ", ".join(f"{name} {version}" for name, version in run["versions"].items())
