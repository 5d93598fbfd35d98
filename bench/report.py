"""From pytest-benchmark's JSON to one table, one compact JSON file, and the README's table."""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Entry = dict[str, Any]
Run = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
# Floors that differ by more than this factor were measured on a machine that was busy with other things.
QUIET = 1.2
PEERS = ("eager", "torch.compile", "liger", "trl")


def read_run(raws: dict[str, Path]) -> Run:
    """One entry per case, route and allocator, from the raw files by allocator."""
    run: Run = {"entries": [], "variants": []}
    for allocator, path in raws.items():
        raw = json.loads(path.read_text())
        run.update(raw["machine_info"]["fastkd"], date=raw["datetime"][:10])
        for benchmark in raw["benchmarks"]:
            info = benchmark["extra_info"]
            if "variant" in info:
                run["variants"].append(_variant(allocator, benchmark))
                continue
            entry = {
                "allocator": allocator,
                "case_id": info["case_id"],
                "route": info["route"],
                **info["case"],
            }
            if "peak_extra" in info:
                peak = info["peak_extra"] / info["logits_bytes"]
                run["entries"].append({**entry, "allocator": None, "peak_extra_logits": peak})
                continue
            entry["ms"] = 1e3 * benchmark["stats"]["median"] / info["calls_per_round"]
            entry["floor_ms"] = [1e3 * seconds for seconds in info["floor_seconds"]]
            entry.update(value_error=info["value_error"], gradient_error=info["gradient_error"])
            if not entry["student_width"]:
                entry["gb_per_s"] = 3 * info["logits_bytes"] / entry["ms"] / 1e6
            run["entries"].append(entry)
    peaks = {(e["case_id"], e["route"]): e["peak_extra_logits"] for e in run["entries"] if not e["allocator"]}
    for entry in run["entries"]:
        if (entry["case_id"], entry["route"]) in peaks:
            entry["peak_extra_logits"] = peaks[entry["case_id"], entry["route"]]
    return run


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


def _quiet(*entries: Entry) -> bool:
    """Whether the floors before and after all of them agree: else the machine was not the same for all."""
    floors = [ms for entry in entries for ms in entry["floor_ms"]]
    return max(floors) <= QUIET * min(floors)


def _times_floor(entry: Entry) -> float | None:
    return entry["ms"] / statistics.mean(entry["floor_ms"]) if _quiet(entry) else None


def _select(run: Run, allocator: str | None, linear: bool) -> dict[str, dict[str, Entry]]:
    """Entries by case and route, in the order in which they were measured."""
    cases: dict[str, dict[str, Entry]] = {}
    for entry in run["entries"]:
        if entry["allocator"] == allocator and (entry["student_width"] > 0) == linear:
            cases.setdefault(entry["case_id"], {})[entry["route"]] = entry
    return cases


def _number(x: float | None, digits: int = 2, unit: str = "") -> str:
    return "-" if x is None else f"{x:.{digits}f}{unit}"


def _speedups(routes: dict[str, Entry]) -> list[str]:
    ours, cells = routes["fastkd"], []
    for peer in PEERS:
        if peer not in routes:
            cells.append("-")
        else:
            quiet = _quiet(ours, routes[peer])
            cells.append(_number(routes[peer]["ms"] / ours["ms"], 1, "x") if quiet else "busy")
    return cells


def _rows(cases: dict[str, dict[str, Entry]], linear: bool) -> Iterable[list[str]]:
    for case_id, routes in cases.items():
        if "fastkd" not in routes:
            columns = len(LINEAR_HEAD if linear else DENSE_HEAD)
            yield [case_id, "wrong or not measured: no speed is stated", *["-"] * (columns - 2)]
            continue
        ours = routes["fastkd"]
        times = _times_floor(ours)
        if linear:
            measured = ["busy" if times is None else f"{times:.2f}x"]
        else:
            measured = [_number(ours["gb_per_s"], 1), "busy" if times is None else f"{1 / times:.2f}"]
        yield [
            case_id,
            _number(ours["ms"], 2 if ours["ms"] < 10 else 1),
            *measured,
            *_speedups(routes),
            _number(ours.get("peak_extra_logits")),
            f"{ours['gradient_error']:.0e}",
        ]


def _variant_rows(run: Run, allocator: str) -> Iterable[list[str]]:
    """Each variant in each dtype: time, share of the floor, time per element over the plain variant's."""
    found = {(e["variant"], e["dtype"]): e for e in run.get("variants", []) if e["allocator"] == allocator}
    dtypes = list(dict.fromkeys(dtype for _, dtype in found))
    for name in dict.fromkeys(name for name, _ in found):
        cells = []
        for dtype in dtypes:
            entry, plain = found.get((name, dtype)), found.get((PLAIN_VARIANT, dtype))
            if entry is None:
                cells += ["-", "-", "-"]
                continue
            times = _times_floor(entry)
            over = "-"
            if plain is not None:
                over = "busy"
                if _quiet(entry, plain):
                    over = _number(entry["ns_per_element"] / plain["ns_per_element"], 2, "x")
            cells += [_number(entry["ms"], 1), "busy" if times is None else f"{1 / times:.2f}", over]
        yield [name, *cells]


def _memory_rows(run: Run) -> Iterable[list[str]]:
    for linear in (False, True):
        for case_id, routes in _select(run, None, linear).items():
            cells = [_number(routes.get(r, {}).get("peak_extra_logits"), 3) for r in ("fastkd", *PEERS)]
            yield [case_id, *cells]


SPEEDUPS = [f"vs {peer}" for peer in PEERS]
DENSE_HEAD = ["kd_loss", "ms", "GB/s", "of floor", *SPEEDUPS, "peak extra", "grad err"]
LINEAR_HEAD = ["linear_kd_loss", "ms", "of 4 GEMMs", *SPEEDUPS, "peak extra", "grad err"]
PLAIN_VARIANT = "forward_kl"
VARIANT_HEAD = ["kd_loss, V = 151,936", *("ms, float32", "of floor", "over forward_kl")]
VARIANT_HEAD += ["ms, bfloat16", "of floor", "over forward_kl"]
MEMORY_HEAD = ["peak extra memory", "fastkd", *PEERS]


def _sections(run: Run) -> Iterable[tuple[str, list[str], list[list[str]]]]:
    for allocator in dict.fromkeys(e["allocator"] for e in run["entries"] if e["allocator"]):
        title = {"default": "the default allocator", "kept": "mapped memory kept"}[allocator]
        if run["device_type"] != "cpu":
            title = "torch's caching allocator"
        for head, linear in ((DENSE_HEAD, False), (LINEAR_HEAD, True)):
            cases = _select(run, allocator, linear)
            if cases:
                yield title, head, list(_rows(cases, linear))
        variants = list(_variant_rows(run, allocator))
        if variants:
            yield title, VARIANT_HEAD[: len(variants[0])], variants
    memory = list(_memory_rows(run))
    if memory:
        yield "peak extra memory, gradient included, in tensors of logits", MEMORY_HEAD, memory


def _heading(run: Run) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    return f"{run['device']}\n{run['date']}; {versions}"


def table(run: Run) -> str:
    """The run as text: fastkd's time, its share of the floor, and how many times longer the peers take."""
    lines = ["", _heading(run), "Forward + backward, KL at T=2 plus cross-entropy, medians.", ""]
    for title, head, rows in _sections(run):
        widths = [max(len(row[i]) for row in (head, *rows) if i < len(row)) for i in range(len(head))]
        lines.append(f"[{title}]")
        for row in (head, *rows):
            cells = [
                c.ljust(w) if i == 0 else c.rjust(w)
                for i, (c, w) in enumerate(zip(row, widths, strict=False))
            ]
            lines.append("  ".join(cells))
        lines.append("")
    return "\n".join(lines)


def markdown(run: Run, source: str) -> str:
    """The run as tables for the README, with the name of the file that holds it."""
    lines = [_heading(run).replace("\n", "  \n")]
    for title, head, rows in _sections(run):
        used = [i for i in range(len(head)) if i == 0 or any(row[i] != "-" for row in rows)]
        lines += ["", f"*{title[0].upper()}{title[1:]}*", ""]
        lines.append("| " + " | ".join(head[i] for i in used) + " |")
        lines.append("|---" * len(used) + "|")
        lines += ["| " + " | ".join(row[i] for i in used) + " |" for row in rows]
    return "\n".join([*lines, "", f"From [`{source}`]({source})."])


def save(run: Run, folder: Path) -> list[Path]:
    """Write ``<device>-<date>.json`` and ``.txt``; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    device = " ".join(part for part in run["device"].split(", ") if "threads" not in part)
    stem = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + "-" + run["date"]
    paths = [folder / f"{stem}.json", folder / f"{stem}.txt"]
    paths[0].write_text(json.dumps(run, indent=1) + "\n")
    paths[1].write_text(table(run).lstrip("\n"))
    return paths


def with_tables(readme: str, tables: str) -> str:
    """The README's text with what stands between the markers replaced."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{tables}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("results", type=Path, help="a JSON file in bench/results")
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
