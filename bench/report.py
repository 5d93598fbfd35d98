"""Turns pytest-benchmark's JSON into one table, one compact JSON file, and the README's table."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.sizes import VOCAB
from fastkd.bench import table as tables
from fastkd.bench.results import FORMAT, Run
from fastkd.bench.table import Section

Entry = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"

PLAIN_VARIANT = "forward_kl"


def read_run(raws: dict[str, Path]) -> Run:
    """One entry per case, route and allocator, from the raw files by allocator."""
    run: Run = {"format": FORMAT, "entries": [], "variants": []}
    for allocator, path in raws.items():
        raw = json.loads(path.read_text())
        run.update(raw["machine_info"]["fastkd"], date=raw["datetime"][:10])
        for benchmark in raw["benchmarks"]:
            info, stats = benchmark["extra_info"], benchmark["stats"]
            if "variant" in info:
                run["variants"].append(_variant(allocator, benchmark))
                continue
            entry = info["entry"]
            if entry["allocator"] is not None:
                entry["allocator"] = allocator
                calls = info["calls_per_round"]
                entry["ms"] = 1e3 * stats["median"] / calls
                entry["quantiles_ms"] = {q: 1e3 * stats[k] / calls for q, k in (("25", "q1"), ("75", "q3"))}
                entry["calls"] = stats["rounds"] * calls
                if entry["op"] == "kd_loss":
                    entry["gb_per_s"] = tables.case_of(entry).least_bytes / entry["ms"] / 1e6
            run["entries"].append(entry)
    _put_peaks_beside_times(run["entries"])
    return run


def _put_peaks_beside_times(entries: list[Entry]) -> None:
    peaks = {(tables.case_of(e), e["route"]): e["peak_extra_bytes"] for e in entries if not e["allocator"]}
    for entry in entries:
        key = (tables.case_of(entry), entry["route"])
        if key in peaks:
            entry["peak_extra_bytes"] = peaks[key]


def _variant(allocator: str, benchmark: dict[str, Any]) -> Entry:
    info = benchmark["extra_info"]
    seconds = benchmark["stats"]["median"] / info["calls_per_round"]
    return {
        "allocator": allocator,
        "variant": info["variant"],
        "dtype": info["dtype"],
        "ms": 1e3 * seconds,
        "ns_per_element": 1e9 * seconds / info["elements"],
        "floor_ms": [1e3 * s for s in info["floor_seconds"]],
        "gradient_error": info["gradient_error"],
    }


def _variants(run: Run, allocator: str) -> Section:
    """Each variant in each dtype: time, fraction of the floor, time per element over the plain variant's."""
    found = {(e["variant"], e["dtype"]): e for e in run.get("variants", []) if e["allocator"] == allocator}
    dtypes = list(dict.fromkeys(dtype for _, dtype in found))
    head = [f"kd_loss, V = {VOCAB:,}"]
    for dtype in dtypes:
        head += [f"ms, {dtype}", "of floor", f"over {PLAIN_VARIANT}"]
    rows = []
    for name in dict.fromkeys(name for name, _ in found):
        cells = []
        for dtype in dtypes:
            entry, plain = found.get((name, dtype)), found.get((PLAIN_VARIANT, dtype))
            if entry is None:
                cells += ["-", "-", "-"]
                continue
            times = tables.times_floor(entry)
            over = "-"
            if plain is not None:
                over = "busy"
                if tables.quiet(entry, plain):
                    over = f"{entry['ns_per_element'] / plain['ns_per_element']:.2f}x"
            cells += [f"{entry['ms']:.1f}", "busy" if times is None else f"{1 / times:.2f}", over]
        rows.append([name, *cells])
    return Section(f"kd_loss in its other forms [{tables.ALLOCATORS[allocator]}]", head, rows, left=1)


def sections(run: Run) -> Iterator[Section]:
    """The tables of the cases, then those of the variants."""
    yield from tables.sections(run)
    for allocator in dict.fromkeys(e["allocator"] for e in run.get("variants", [])):
        yield _variants(run, allocator)


def table(run: Run) -> str:
    """The run as text."""
    return "\n".join(["", tables.heading(run), "", tables.render(sections(run))])


def markdown(run: Run, source: str) -> str:
    """The run as tables for the README, with the name of the file that holds it."""
    lines = [tables.heading(run).replace("\n", "  \n")]
    for title, head, rows, _ in sections(run):
        whole = [row + [""] * (len(head) - len(row)) for row in rows]
        used = [i for i in range(len(head)) if i == 0 or any(row[i] not in ("-", "") for row in whole)]
        lines += ["", f"*{title}*", ""]
        lines.append("| " + " | ".join(head[i] for i in used) + " |")
        lines.append("|---" * len(used) + "|")
        lines += ["| " + " | ".join(row[i] for i in used) + " |" for row in whole]
    return "\n".join([*lines, "", f"From [`{source}`]({source})."])


def save(run: Run, folder: Path) -> list[Path]:
    """Write ``<device>-<date>.json`` and ``.txt``, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    device = " ".join(part for part in run["device"].split(", ") if "threads" not in part)
    stem = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + "-" + run["date"]
    paths = [folder / f"{stem}.json", folder / f"{stem}.txt"]
    paths[0].write_text(json.dumps(run, indent=1) + "\n")
    paths[1].write_text(table(run).lstrip("\n"))
    return paths


def with_tables(readme: str, tables: str) -> str:
    """The README's text with ``tables`` in place of the text between the markers."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{tables}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument(
        "results", type=Path, help="a JSON file in bench/results, or fastkd bench's results.json"
    )
    parser.add_argument("--update-readme", action="store_true", help="put the tables into README.md")
    arguments = parser.parse_args()
    run = json.loads(arguments.results.read_text())
    if not arguments.update_readme:
        print(table(run))
        return
    source = arguments.results.resolve().relative_to(ROOT).as_posix()
    README.write_text(with_tables(README.read_text(), markdown(run, source)))


if __name__ == "__main__":
    main()
