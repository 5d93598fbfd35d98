"""The tables of a run: fastkd's time beside the floor, how many times longer the peers take, and memory.

``render`` turns them into text.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from fastkd.bench.cases import MAIN, Case
from fastkd.bench.measure import Entry
from fastkd.bench.results import Run
from fastkd.bench.suite import VOCAB

# If floors differ by more than this factor, the machine was busy with other work while they were measured.
QUIET = 1.2
ALLOCATORS = {"default": "the default allocator", "kept": "mapped memory kept"}


class Section(NamedTuple):
    """A table. A row that is shorter than the head ends in a sentence instead of numbers."""

    title: str
    head: list[str]
    rows: list[list[str]]
    left: int = 2  # number of text columns at the left, which are left-aligned


def case_of(entry: Entry) -> Case:
    return Case(**{name: entry[name] for name in Case.__dataclass_fields__})


def case_title(case: Case) -> str:
    """The whole case on one line."""
    return f"{case.op} {case.id}, {case.quantity}, {case.calls}"


def entry_title(entry: Entry) -> str:
    return case_title(case_of(entry))


def quiet(*entries: Entry) -> bool:
    """Whether all floors of the entries agree; if not, the machine was busy and times cannot be compared."""
    floors = [ms for entry in entries for ms in entry["floor_ms"]]
    return max(floors) <= QUIET * min(floors)


def times_floor(entry: Entry) -> float | None:
    """An entry's time as a multiple of its floor; None if the machine was busy."""
    return entry["ms"] / statistics.mean(entry["floor_ms"]) if quiet(entry) else None


def size(count: int | None) -> str:
    """Bytes in MiB or GiB."""
    if count is None:
        return "-"
    if count >= 2**30:
        return f"{count / 2**30:.2f} GiB"
    return f"{count / 2**20:.0f} MiB" if count >= 100 * 2**20 else f"{count / 2**20:.1f} MiB"


def milliseconds(ms: float) -> str:
    return f"{ms:.3f}" if ms < 1 else f"{ms:.2f}" if ms < 10 else f"{ms:.1f}"


def speedup(ours: Entry, peer: Entry | None) -> str:
    """How many times as long the peer takes as fastkd, or why there is no such ratio."""
    if peer is None:
        return "-"
    if peer["status"] == "wrong":
        errors = [x for x in (peer["value_error"], peer["gradient_error"]) if x is not None]
        return f"wrong ({max(errors):.0e})" if errors else "wrong (NaN)"
    if peer["status"] != "ok":
        return "no memory" if peer["status"] == "skipped" else "failed"
    return f"{peer['ms'] / ours['ms']:.1f}x" if quiet(ours, peer) else "busy"


def groups(run: Run) -> dict[tuple[Any, ...], list[Entry]]:
    """The entries of each table: those of one allocator, op, quantity and kind of call."""
    found: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in run["entries"]:
        if entry["allocator"] is not None:
            case = case_of(entry)
            key = (entry["allocator"], case.op, case.quantity, case.calls)
            found.setdefault(key, []).append(entry)
    return found


def by_case(entries: Iterable[Entry]) -> dict[str, dict[str, Entry]]:
    """Entries by case id and by route, in the order of measurement."""
    cases: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        cases.setdefault(case_of(entry).id, {})[entry["route"]] = entry
    return cases


def sections(run: Run) -> Iterator[Section]:
    """The tables of the cases: times and, if the memory of peers was measured, the memory of all routes."""
    found, memory_of = groups(run), peaks(run)
    several = len({allocator for allocator, *_ in found}) > 1
    for (allocator, op, quantity, calls), entries in found.items():
        title = f"{op}, {calls}: {quantity}"
        if several:
            title += f" [{ALLOCATORS[allocator]}]"
        yield _times(title, entries, memory_of)
    memory = _memory(run)
    if memory is not None:
        yield memory


def variants(run: Run) -> Iterator[Section]:
    """The tables of the variants, one for each allocator mode."""
    for allocator in dict.fromkeys(entry["allocator"] for entry in run.get("variants", [])):
        yield _variants(run, allocator)


def peaks(run: Run) -> dict[tuple[Case, str], int]:
    """The peak memory of each case and route, which is measured in one allocator mode only."""
    measured = [entry for entry in run["entries"] if "peak_extra_bytes" in entry]
    return {(case_of(entry), entry["route"]): entry["peak_extra_bytes"] for entry in measured}


def _times(title: str, entries: list[Entry], peaks: dict[tuple[Case, str], int]) -> Section:
    linear = case_of(entries[0]).linear
    peers = list(dict.fromkeys(e["route"] for e in entries if not e["ours"]))
    measures = ["of GEMMs"] if linear else ["GB/s", "of floor"]
    head = ["case", "backend", "ms", *measures, *(f"vs {peer}" for peer in peers), "peak extra", "grad err"]
    rows = []
    for name, routes in by_case(entries).items():
        ours = [entry for entry in routes.values() if entry["ours"]]
        if not ours:
            rows.append([name, "fastkd was not measured: no speed is stated"])
        for entry in ours:
            backend = entry["route"].removeprefix("fastkd ")
            if entry["status"] != "ok":
                said = {"wrong": "WRONG, no speed is stated", "skipped": "skipped"}
                rows.append([name, backend, f"{said.get(entry['status'], 'FAILED')}: {entry['reason']}"])
                continue
            rows.append([name, backend, milliseconds(entry["ms"]), *_share(entry, linear)])
            rows[-1] += [speedup(entry, routes.get(peer)) for peer in peers]
            error = entry["gradient_error"]
            peak = size(peaks.get((case_of(entry), entry["route"])))
            rows[-1] += [peak, "-" if error is None else f"{error:.0e}"]
    return Section(title, head, rows)


def _share(entry: Entry, linear: bool) -> list[str]:
    times = times_floor(entry)
    if linear:
        return ["busy" if times is None else f"{times:.2f}x"]
    return [f"{entry['gb_per_s']:.1f}", "busy" if times is None else f"{1 / times:.2f}"]


def _memory(run: Run) -> Section | None:
    measured = [e for e in run["entries"] if "peak_extra_bytes" in e]
    peers = list(dict.fromkeys(e["route"] for e in measured))
    if all(e["ours"] for e in measured):
        return None
    found: dict[tuple[str, str], dict[str, Entry]] = {}
    for entry in measured:
        case = case_of(entry)
        found.setdefault((case.id, f"{case.quantity}, {case.calls}"), {})[entry["route"]] = entry
    title = "peak extra memory, the gradient included and the inputs not"
    rows = []
    for (name, quantity), routes in found.items():
        one = next(iter(routes.values()))
        cells = [size(routes.get(peer, {}).get("peak_extra_bytes")) for peer in peers]
        rows.append([name, quantity, size(one["logits_bytes"]), *cells])
    head = ["case", "quantity", "one tensor of logits", *peers]
    if len({quantity for _, quantity in found}) > 1:
        return Section(title, head, rows)
    title = f"{title}: {rows[0][1]}"
    return Section(title, [head[0], *head[2:]], [[row[0], *row[2:]] for row in rows], left=1)


def _variants(run: Run, allocator: str) -> Section:
    """Each variant in each dtype: time, fraction of the floor, time per element over the plain variant's."""
    found = {(e["variant"], e["dtype"]): e for e in run["variants"] if e["allocator"] == allocator}
    dtypes = list(dict.fromkeys(dtype for _, dtype in found))
    head = [f"kd_loss, V = {VOCAB:,}"]
    for dtype in dtypes:
        head += [f"ms, {dtype}", "of floor", f"over {MAIN}"]
    rows = []
    for name in dict.fromkeys(name for name, _ in found):
        pairs = [(found.get((name, dtype)), found.get((MAIN, dtype))) for dtype in dtypes]
        rows.append([name, *(cell for entry, plain in pairs for cell in _variant(entry, plain))])
    return Section(f"kd_loss in its other forms [{ALLOCATORS[allocator]}]", head, rows, left=1)


def _variant(entry: Entry | None, plain: Entry | None) -> list[str]:
    """The three cells of a variant in one dtype, given the plain variant's entry."""
    if entry is None:
        return ["-", "-", "-"]
    if "ms" not in entry:
        return [entry["status"].upper(), "-", "-"]
    times, over = times_floor(entry), "-"
    if plain is not None and "ms" in plain:
        over = "busy"
        if quiet(entry, plain):
            over = f"{entry['ns_per_element'] / plain['ns_per_element']:.2f}x"
    return [f"{entry['ms']:.1f}", "busy" if times is None else f"{1 / times:.2f}", over]
