"""The mark ``repeats``, which leaves some cases of one code path to the quick tests."""

from __future__ import annotations

import zlib
from typing import Any

import pytest


def mark_repetitions(items: list[pytest.Item]) -> None:
    """Mark as slow most cases of the tests that carry the mark ``repeats``, separately for each target.

    ``repeats(n)`` keeps n evenly spread cases per target among the quick tests. ``repeats(interpreted=n)``
    does so only where Triton's kernels are interpreted, and ``repeats(m, interpreted=n)`` gives each its
    number. On a GPU all cases run.
    """
    groups: dict[tuple[Any, str, Any], tuple[int, list[pytest.Item]]] = {}
    for item in items:
        mark = item.get_closest_marker("repeats")
        if mark is None or item.get_closest_marker("gpu"):
            continue
        quick = mark.args[0] if mark.args else None
        if item.get_closest_marker("triton_interpret"):
            quick = mark.kwargs.get("interpreted", quick)
        if quick is not None:
            target = item.callspec.params.get("target") if isinstance(item, pytest.Function) else None
            key = (item.path, getattr(item, "originalname", ""), target)
            groups.setdefault(key, (quick, []))[1].append(item)
    for (_, function, _), (quick, cases) in groups.items():
        # Each test begins elsewhere, so that together they keep every divergence among the quick tests.
        first = zlib.crc32(function.encode())
        kept = {(first + place * len(cases) // quick) % len(cases) for place in range(quick)}
        for place, item in enumerate(cases):
            if place not in kept:
                item.add_marker(pytest.mark.slow)
