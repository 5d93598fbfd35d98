"""Writes the tables of a run as text or as Markdown.

``python -m fastkd.bench.render FILE.json`` prints the table of an earlier run again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from fastkd.bench.results import Run
from fastkd.bench.table import Section, entry_title, sections, variants


def text(run: Run) -> str:
    """The whole run: its tables, what each peer computes, and what is absent or was not measured."""
    lines = ["", heading(run), "", _tables([*sections(run), *variants(run)])]
    used = {e["route"] for e in run["entries"]}
    lines += [f"vs {name}: {about}" for name, about in run.get("peers", {}).items() if name in used]
    lines += [f"absent: {name}: {reason}" for name, reason in run.get("absent", {}).items()]
    unmeasured = dict.fromkeys(e["no_memory_because"] for e in run["entries"] if "no_memory_because" in e)
    lines += [f"no peak of memory: {reason}" for reason in unmeasured]
    lines += [
        f"{e['route']} {e['status']}, {entry_title(e)}: {e['reason']}"
        for e in run["entries"]
        if not e["ours"] and e["status"] in ("wrong", "failed")
    ]
    lines += [
        f"{e['variant']}, {e['dtype']}: {e['reason']}" for e in run.get("variants", []) if "reason" in e
    ]
    if run.get("cases_left"):
        lines.append(f"{run['cases_left']} cases were left when time ran out: the same command measures them")
    return "\n".join(lines) + "\n"


def heading(run: Run) -> str:
    found = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    return f"{run['device']}\n{run['date']}; {found}"


def _tables(sections: Iterable[Section]) -> str:
    lines = []
    for title, head, rows, left in sections:
        whole = [head, *(row for row in rows if len(row) == len(head))]
        short = [row for row in rows if len(row) < len(head)]
        widths = [max(len(row[i]) for row in whole) for i in range(len(head))]
        widths[0] = max([widths[0], *(len(row[0]) for row in short)])
        lines.append(title)
        for row in (head, *rows):
            cells = [
                c.ljust(w) if i < left or len(row) < len(head) else c.rjust(w)
                for i, (c, w) in enumerate(zip(row, widths, strict=False))
            ]
            lines.append("  ".join(cells).rstrip())
        lines.append("")
    return "\n".join(lines)


def markdown(run: Run, source: str) -> str:
    """The tables of the cases in Markdown, without empty columns, and the name of the file with the run."""
    lines = [heading(run).replace("\n", "  \n")]
    for title, head, rows, _ in sections(run):
        whole = [row + [""] * (len(head) - len(row)) for row in rows]
        used = [i for i in range(len(head)) if i == 0 or any(row[i] not in ("-", "") for row in whole)]
        lines += ["", f"*{title}*", ""]
        lines.append("| " + " | ".join(head[i] for i in used) + " |")
        lines.append("|---" * len(used) + "|")
        lines += ["| " + " | ".join(row[i] for i in used) + " |" for row in whole]
    return "\n".join([*lines, "", f"From [`{source}`]({source}), beside which a `.txt` has all tables."])


if __name__ == "__main__":
    print(text(json.loads(Path(sys.argv[1]).read_text())))
