"""How much of the teacher's distributions a cache's entries hold, counted while the entries are made."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from fastkd.corpora.store.encoding import Entries

# Bins of the histogram over [0, 1] from which percentiles are read.
BINS = 200
# The percentile that stands for the tokens of which the entries hold least.
LOW = 5
# Key of the counts in the metadata of a shard, and of their summary in the notes of a manifest.
KEY = "held"


class Mass(NamedTuple):
    """The probability that a token's entries hold: its mean, and its 5th percentile, over the tokens."""

    mean: float
    low: float


def masses(logits: Tensor, entries: Entries, temperature: float) -> np.ndarray:
    """The probability that each token's entries hold in ``softmax(logits / temperature)``.

    Args:
        logits: ``(tokens, V)``.
        entries: of the same tokens.
        temperature: of the softmax.
    """
    softened = logits.float() / temperature
    token = torch.from_numpy(np.repeat(np.arange(len(logits)), entries.per_token())).to(logits.device)
    column = torch.from_numpy(entries.columns()).to(logits.device)
    held = (softened[token, column] - softened.logsumexp(-1)[token]).double().exp()
    return (
        torch.zeros(len(logits), dtype=torch.float64, device=logits.device)
        .index_add(0, token, held)
        .clamp(max=1.0)
        .cpu()
        .numpy()
    )


def masses_at_1(entries: Entries) -> np.ndarray:
    """The probability that each token's entries of a ``topk`` cache hold at temperature 1."""
    token = np.repeat(np.arange(len(entries.pages)), entries.per_token())
    held = np.bincount(token, np.exp(entries.values.astype(np.float64)), len(entries.pages))
    return np.minimum(held, 1.0)


class Held:
    """Counts over tokens: their entries, and the probability that these hold at some temperatures.

    Args:
        temperatures: the temperatures at which the probability is counted.
    """

    def __init__(self, temperatures: Iterable[float]) -> None:
        self.tokens = self.entries = 0
        self.sums = dict.fromkeys(map(named, temperatures), 0.0)
        self.counts = {name: np.zeros(BINS, np.int64) for name in self.sums}

    def add(self, logits: Tensor, entries: Entries) -> None:
        """Count the tokens of ``(tokens, V)`` logits with these entries."""
        self.tokens += len(logits)
        self.entries += len(entries.low)
        for name in self.sums:
            self.add_masses(name, masses(logits, entries, float(name)))

    def add_masses(self, name: str, found: np.ndarray) -> None:
        """Count the probabilities that the entries of some tokens hold at one of the temperatures."""
        self.sums[name] += float(found.sum())
        places = np.minimum((found * BINS).astype(np.int64), BINS - 1)
        self.counts[name] += np.bincount(places, minlength=BINS)

    @property
    def distinct(self) -> float:
        """Mean number of entries of a token."""
        return self.entries / max(1, self.tokens)

    def mass(self, temperature: float) -> Mass | None:
        """The probability at a temperature; None where it was not counted."""
        counts = self.counts.get(name := named(temperature))
        if counts is None or not self.tokens:
            return None
        # The bin of the token below which LOW percent of the tokens are, and its place within the bin.
        up_to, wanted = np.cumsum(counts), LOW / 100 * self.tokens
        place = int(np.searchsorted(up_to, wanted))
        low = (place + 1 - (up_to[place] - wanted) / counts[place]) / BINS
        return Mass(self.sums[name] / self.tokens, float(low))

    def to_json(self) -> str:
        """The counts as text, for the metadata of a shard."""
        bins = {
            name: [[int(place), int(counts[place])] for place in np.flatnonzero(counts)]
            for name, counts in self.counts.items()
        }
        return json.dumps(
            {"tokens": self.tokens, "entries": self.entries, "sums": self.sums, "bins": bins},
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> Held:
        """The counts that :meth:`to_json` wrote."""
        given = json.loads(text)
        made = cls(map(float, given["sums"]))
        made.tokens, made.entries, made.sums = given["tokens"], given["entries"], given["sums"]
        for name, bins in given["bins"].items():
            for place, count in bins:
                made.counts[name][place] = count
        return made

    @classmethod
    def total(cls, parts: list[Held]) -> Held:
        """The counts of all parts together, at the temperatures that every part has."""
        made = cls(float(name) for name in parts[0].sums if all(name in part.sums for part in parts))
        for part in parts:
            made.tokens += part.tokens
            made.entries += part.entries
            for name in made.sums:
                made.sums[name] += part.sums[name]
                made.counts[name] += part.counts[name]
        return made

    def summary(self) -> dict[str, Any]:
        """The figures that the manifest states."""
        found = {name: self.mass(float(name)) for name in self.sums}
        return {
            "entries_per_token": round(self.distinct, 3),
            "mass": {
                name: {"mean": round(mass.mean, 4), "p5": round(mass.low, 4)}
                for name, mass in found.items()
                if mass is not None
            },
        }


def named(temperature: float) -> str:
    """The name of a temperature in the counts and in the manifest."""
    return f"{float(temperature):g}"


def read_held(paths: list[Path]) -> Held | None:
    """The counts of all shards together; None where a shard has none, as before they were counted."""
    parts = []
    for path in paths:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(KEY)
        if text is None:
            return None
        parts.append(Held.from_json(text))
    return Held.total(parts) if parts else None
