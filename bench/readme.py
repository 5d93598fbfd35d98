"""``python -m bench.readme FILE.json``: put the tables of a run in bench/results into README.md, those of a
training step's whole loss, and draw the pictures that README.md begins with, for light and for dark pages.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fastkd.bench.cases import KD_RATIO
from fastkd.bench.render import markdown
from fastkd.bench.results import Run
from fastkd.bench.summary import write

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "benchmark.svg"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


def with_tables(readme: str, tables: str) -> str:
    """The README's text with ``tables`` in place of the text between the markers."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{tables}\n{END}{after}"


def whole_losses(run: Run) -> Run:
    """The run with the entries of divergence and cross-entropy together, forward and backward, alone."""
    entries = [e for e in run["entries"] if e["backward"] and e["kd_ratio"] == KD_RATIO]
    return {**run, "entries": entries}


if __name__ == "__main__":
    results = Path(sys.argv[1])
    source = results.resolve().relative_to(ROOT).as_posix()
    run = json.loads(results.read_text())
    README.write_text(with_tables(README.read_text(), markdown(whole_losses(run), source)))
    if not write(run, PICTURE):
        print(f"the machine was busy in every case: {PICTURE.name} stays as it was", file=sys.stderr)
