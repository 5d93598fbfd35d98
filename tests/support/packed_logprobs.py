"""Packs log-probabilities as other programs do, number by number in plain Python: the readers' oracle."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

FORMATS = {"float16": "<e", "float32": "<f", "float64": "<d"}


def bits(values: Sequence[int], width: int) -> list[int]:
    """Integers as bytes, bit by bit from the most significant one on."""
    text = "".join(format(value, f"0{width}b") for value in values)
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


def words(values: Sequence[int], width: int) -> list[int]:
    """Integers as 64-bit words, the first one in the lowest bits of the first word."""
    each = 64 // width
    parts = [values[i : i + each] for i in range(0, len(values), each)]
    return [sum(value << (width * i) for i, value in enumerate(part)) for part in parts]


def number(value: float, dtype: str) -> bytes:
    """A number as little-endian bytes; bfloat16 by cutting a float32 off."""
    if dtype == "bfloat16":
        return struct.pack("<f", value)[2:]
    return struct.pack(FORMATS[dtype], value)


def rounded(value: float, dtype: str) -> float:
    """The number that :func:`number` stores."""
    if dtype == "bfloat16":
        return float(struct.unpack("<f", b"\0\0" + number(value, dtype))[0])
    return float(struct.unpack(FORMATS[dtype], number(value, dtype))[0])


def compressed(logprobs: Sequence[float], config: dict[str, Any]) -> tuple[list[int], list[float]]:
    """One token's log-probabilities as DistillKit stores them, and what must be read again."""
    given = list(logprobs)
    if config.get("delta_encoding", True):
        given = [given[0], *(b - a for a, b in pairwise(given))]
    exact_dtype = config.get("exact_dtype", "float32")
    exact, others = given[: config["exact_k"]], given[config["exact_k"] :]
    raw = b"".join(number(value, exact_dtype) for value in exact)
    back, left = [rounded(value, exact_dtype) for value in exact], [0.0] * len(others)
    if terms := config.get("polynomial_terms"):
        steps = max(1, len(others) - 1) if config.get("normalize_t") else 1
        rows = []
        for i in range(len(others)):
            t = i / steps
            rows.append([{"sqrt": math.sqrt(t), "exp": math.exp(t)}[x] if x in ("sqrt", "exp") else t**x
                         for x in terms])  # fmt: skip
        fitted = np.linalg.lstsq(np.array(rows), np.array(others), rcond=None)[0]
        dtype = config.get("term_dtype", "float32")
        raw += b"".join(number(value, dtype) for value in fitted)
        kept = [rounded(value, dtype) for value in fitted]
        left = [sum(a * b for a, b in zip(row, kept, strict=True)) for row in rows]
    data, begin = list(raw), 0
    for one in config.get("residual_bins", ()):
        width, count, dtype = one["element_bits"], one["num_elements"], one["scale_dtype"]
        residuals = [others[begin + i] - left[begin + i] for i in range(count)]
        largest = max(map(abs, residuals))
        half = 1 if width == 1 else 2 ** (width - 1)
        scale = rounded(largest / half if largest else 1.0, dtype)
        if width == 1:
            levels = [int(value > 0) for value in residuals]
            values = [(2 * level - 1) * scale for level in levels]
        else:
            levels = [min(max(round(value / scale), -half), half - 1) + half for value in residuals]
            values = [(level - half) * scale for level in levels]
        data += [*number(scale, dtype), *bits(levels, width)]
        for i, value in enumerate(values):
            left[begin + i] += value
        begin += count
    found = back + left
    if config.get("delta_encoding", True):
        found = [sum(found[: i + 1]) for i in range(len(found))]
    return data, found
