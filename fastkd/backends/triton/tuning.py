"""Chooses shapes of programs by timing them once per GPU and kind of call, if the user enables it.

It is off by default: a shape fixes the order of sums, so two machines, or two ranks, that choose differently
round differently, and the first call has to compile and time every candidate. A choice is made only once: it
is kept in the process and, in one file for each kind of call, in the user's cache directory, where the first
of several processes decides for all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import statistics
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import torch
import triton

from fastkd import _settings
from fastkd.backends.triton import sources
from fastkd.backends.triton.divergences import Formulas
from fastkd.backends.triton.shapes import CANDIDATES, Shape, usual

Key = tuple[int | None, str, str, int]
Run = Callable[[Shape], None]

REPEATS = 7
logger = logging.getLogger(__name__)
_chosen: dict[Key, Shape] = {}
_lock = threading.Lock()


def bucket(vocab: int) -> int:
    """``vocab`` rounded up to a power of two; vocabularies with the same one share a choice."""
    return 1 << max(vocab - 1, 0).bit_length()


def _identity(device: str, formulas: Formulas, dtypes: str, vocab: int) -> dict[str, str | int]:
    """Everything that a choice depends on. It must not outlive the kernels that it was made for."""
    return {
        "device": device,
        "triton": triton.__version__,
        "kernels": sources.digest(),
        "class": formulas.weight,
        "divergence": formulas.name,
        "dtypes": dtypes,
        "vocabulary": bucket(vocab),
    }


def _path(identity: dict[str, str | int]) -> Path | None:
    directory = _settings.cache_directory()
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    return None if directory is None else directory / "triton" / f"{name}.json"


def _read(identity: dict[str, str | int]) -> Shape | None:
    """The stored choice; None if there is no file, or no valid choice in it."""
    path = _path(identity)
    try:
        stored = json.loads(path.read_text()) if path is not None else None
        shape = Shape(*stored["shape"]) if isinstance(stored, dict) and stored["call"] == identity else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return shape if shape in CANDIDATES[str(identity["class"])] else None


def _store(identity: dict[str, str | int], shape: Shape) -> Shape:
    """Write the choice, completely or not at all; return the one that counts, the first process's."""
    path = _path(identity)
    if path is None:
        return shape
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", delete=False) as file:
            json.dump({"call": identity, "shape": shape}, file)
        try:
            os.link(file.name, path)  # fails if the file exists
        except OSError:
            earlier = _read(identity)
            if earlier is not None:
                return earlier
            os.replace(file.name, path)
        finally:
            Path(file.name).unlink(missing_ok=True)
    except OSError as error:
        logger.warning("fastkd: the tuned tiles are not kept on disk: %s", error)
    return shape


def _times(candidates: tuple[Shape, ...], run: Run) -> dict[Shape, float]:
    """Median milliseconds of the candidates that can run. Waits for the device."""
    times: dict[Shape, list[float]] = {}
    for shape in candidates:
        try:
            run(shape)  # compiles
            times[shape] = []
        except triton.runtime.errors.OutOfResources:
            continue
    for _ in range(REPEATS):  # in turns, so that a changing clock rate affects all of them
        for shape, found in times.items():
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            run(shape)
            end.record()
            end.synchronize()
            found.append(begin.elapsed_time(end))
    return {shape: statistics.median(found) for shape, found in times.items()}


def _tuned(identity: dict[str, str | int], table: Shape, scratch: Callable[[], Run]) -> Shape:
    candidates = CANDIDATES[str(identity["class"])]
    logger.warning(
        "fastkd: tuning Triton's %s for %s and vocabularies up to %s, once: %d tiles, each compiled first",
        identity["divergence"],
        identity["dtypes"],
        identity["vocabulary"],
        len(candidates),
    )
    try:
        times = _times(candidates, scratch())
    except torch.cuda.OutOfMemoryError:
        logger.warning("fastkd: no memory to tune in; the tiles of the table are used")
        return table
    if not times:
        return table
    best = min(times, key=lambda shape: times[shape])
    return _store(identity, best)


def choose(
    device: torch.device, formulas: Formulas, dtypes: str, vocab: int, scratch: Callable[[], Run]
) -> Shape:
    """The shape for a call on the current device, the same one each time in this process.

    Args:
        dtypes: the dtypes of student and teacher.
        scratch: makes tensors for tuning and returns a function that runs a shape on them.
    """
    table = usual(formulas, vocab)
    if device.type != "cuda" or not _settings.triton_autotune():
        return table
    key = (device.index, formulas.name, dtypes, bucket(vocab))
    with _lock:
        if key not in _chosen:
            identity = _identity(torch.cuda.get_device_name(device), formulas, dtypes, vocab)
            shape = _read(identity)
            if shape is None and torch.cuda.is_current_stream_capturing():
                shape = table  # timing would wait, and the process keeps what a graph has captured
            _chosen[key] = shape or _tuned(identity, table, scratch)
        return _chosen[key]
