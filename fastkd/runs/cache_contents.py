"""The share of its teacher's distributions that a cache holds: measured on rows, read from it, and judged."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastkd.corpora.store import CacheReader, Manifest
from fastkd.corpora.store.encoding import ROW_BYTES, Entries
from fastkd.corpora.store.fingerprints import survey
from fastkd.corpora.store.held import KEY, Held, Mass, masses_at_1, named
from fastkd.corpora.tasks import TASKS
from fastkd.corpora.tasks.base import Row
from fastkd.runs.cache_source import CacheSource, cached_temperatures
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.loading import load_teacher_model
from fastkd.trainer.loading.adapters import base_name
from fastkd.trainer.teachers import TeacherSource

# Rows and tokens that are measured: enough for a mean to within some percent, and a second of work.
ROWS, TOKENS = 64, 2_000
# The largest weights, in bytes on the disk, that are loaded only to measure what a cache would hold.
SMALL = 2**30
# Mean probability, at the teacher's temperature in the loss, below which a student was worse than without a
# teacher, by the way in which the rest is counted. docs/trainer.md has the table of the measurements.
LOW_MASS = {"renormalize": 0.8, "bucket": 0.2}


class Advice(NamedTuple):
    """Why a cache will teach badly, and the settings that mend it."""

    found: str
    remedy: str


@dataclass(frozen=True)
class Measured:
    """A measurement of a cache of a few rows.

    Attributes:
        rows, tokens: how many were measured.
        bytes_per_token: of the shards, without the head of a ``hidden`` cache.
        held: counts of entries and of the probability that they hold.
    """

    rows: int
    tokens: int
    bytes_per_token: float
    held: Held


def is_small(args: DistillationConfig) -> bool:
    """Whether the teacher is a model in a directory here, with at most ``SMALL`` bytes of weights."""
    if not TeacherSource.parse(args.teacher).is_model:
        return False
    folder = Path(base_name("teacher", str(args.teacher)))
    return folder.is_dir() and 0 < sum(file.stat().st_size for file in folder.glob("*.safetensors")) <= SMALL


def measure(
    args: DistillationConfig, rows: list[Row], tokenizer: Any, kinds: tuple[str, ...]
) -> dict[str, Measured]:
    """Run the teacher over some of the rows, and encode its distributions as each kind of cache would.

    Args:
        args: the settings; ``teacher`` names a model.
        rows: encoded rows.
        tokenizer: the tokenizer that encoded them.
        kinds: ``topk`` or ``sampled``, or both.

    Raises:
        ValueError: a teacher that cannot be loaded, or that a cache cannot be made of.
    """
    task = TASKS[args.task]
    rows = rows[:: max(1, len(rows) // ROWS)][:ROWS]
    targets = survey(rows, task)[1]
    some = rows[: 1 + int(np.searchsorted(targets.cumsum(), TOKENS))]
    tokens = int(targets[: len(some)].sum())
    if not tokens:
        return {}
    args = copy.copy(args)
    args.per_device_eval_batch_size = min(args.per_device_eval_batch_size, 8)
    model = load_teacher_model(args)
    found = {}
    for kind in kinds:
        args.cache_kind = kind
        source = CacheSource(model, task, args, tokenizer)
        source.teacher.to(args.device)
        held = Held(cached_temperatures(args))
        parts = list(source.run(some, 0, len(some), held))
        size = len(some) * ROW_BYTES + sum(part.bytes for part in parts if isinstance(part, Entries))
        found[kind] = Measured(len(some), tokens, size / tokens, held)
    return found


def measured_mass(reader: CacheReader) -> tuple[Mass, float]:
    """The probability that a ``topk`` cache holds at temperature 1, measured on some of its rows, and 1.0.

    An older version wrote none into the manifest. The files must be verified.
    """
    held = Held([1.0])
    for row in range(0, len(reader), max(1, len(reader) // ROWS)):
        found = masses_at_1(reader.entries(row))
        held.tokens += len(found)
        held.add_masses(named(1.0), found)
    mass = held.mass(1.0)
    assert mass is not None  # a cache has targets
    return mass, 1.0


def stated_mass(made: Manifest, temperature: float) -> tuple[Mass, float] | None:
    """The probability that the manifest states for a temperature, or else for 1, and that temperature; None
    where an older version has written neither.
    """
    stated = made.notes.get(KEY, {}).get("mass", {})
    for wanted in (temperature, 1.0):
        if (one := stated.get(named(wanted))) is not None:
            return Mass(one["mean"], one["p5"]), wanted
    return None


def advice_on(args: DistillationConfig, made: Manifest) -> Advice | None:
    """Advice on a cache that has just been made, if it holds too little for these settings."""
    found = stated_mass(made, read_at(args)) if made.kind == "topk" else None
    return None if found is None else judged(args, *found, str(made.folder))


def contents(made: Manifest) -> str | None:
    """A sentence about what a cache holds; None of a ``hidden`` one, which holds everything."""
    if (stated := made.notes.get(KEY)) is None:
        return None
    shown = [
        f"{one['mean']:.1%} of the probability at temperature {name} (5th percentile {one['p5']:.1%})"
        for name, one in stated["mass"].items()
    ]
    what = "distinct columns" if made.kind == "sampled" else "entries"
    return f"{stated['entries_per_token']:.1f} {what} per token hold {' and '.join(shown)}"


def read_at(args: DistillationConfig) -> float:
    """The teacher's temperature in the loss. It decides how much of the distribution entries hold: the higher
    it is, the more probability is in the many columns that a ``topk`` cache leaves out.
    """
    return float(args.teacher_temperature or args.temperature)


def judged(args: DistillationConfig, mass: Mass, temperature: float, where: str) -> Advice | None:
    """Advice where a ``topk`` cache holds too little; None where it holds enough.

    Args:
        args: the settings of the run that reads it.
        mass, temperature: the probability that is held at this temperature.
        where: names the cache, or the rows that were measured.
    """
    least = LOW_MASS[args.cache_tail]
    if mass.mean >= least:
        return None
    does = (
        "cache_tail: renormalize teaches that nothing else is possible"
        if args.cache_tail == "renormalize"
        else "of the rest the student learns only its sum"
    )
    softened = {float(args.temperature), read_at(args)} != {1.0}
    remedies = ["raise cache_top_k", "set cache_kind: hidden"]
    if args.divergence == "forward_kl":
        alone = " with temperature: 1" if softened else ""
        remedies.insert(0, f"set cache_kind: sampled{alone}, which is unbiased")
    if softened:
        remedies.insert(0, "set temperature: 1")
    if args.cache_tail == "renormalize":
        remedies.insert(0, "set cache_tail: bucket")
    return Advice(
        f"{where}: the entries of a topk cache hold {mass.mean:.0%} of the teacher's probability at "
        f"temperature {named(temperature)} (5th percentile {mass.low:.0%}), and {does}",
        ", or ".join(remedies),
    )
