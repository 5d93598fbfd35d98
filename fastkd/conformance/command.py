"""Runs adapters, prints the table, and writes the page."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastkd.conformance import page, table
from fastkd.conformance.adapter import Adapter
from fastkd.conformance.loading import SHIPPED, Missing, load
from fastkd.conformance.runner import Status, run

ABOUT = """Run distillation losses through the cases that this field gets wrong, and compare loss and
gradients with a float64 oracle. Each loss is judged by the definition that its adapter states. The exit code
is 1 if a loss is wrong in a case."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fastkd.conformance", description=ABOUT)
    help = f"an adapter's file, or one of {', '.join(SHIPPED)} (default: all of these)"
    parser.add_argument("adapter", nargs="*", metavar="ADAPTER", help=help)
    parser.add_argument("--device", default="cpu", metavar="cpu|cuda", help="(default: %(default)s)")
    help = "also write the results as a page in Markdown, such as docs/conformance.md (default: no)"
    parser.add_argument("--docs", type=Path, metavar="FILE", help=help)
    return parser


def main(argv: list[str]) -> int:
    """Run the command and return the exit code.

    Raises:
        ValueError: an adapter is unknown or invalid.
        ImportError: a user's adapter cannot be imported.
    """
    options = _parser().parse_args(argv)
    found = [x for name in options.adapter or SHIPPED for x in load(name, options.device)]
    missing = [x for x in found if isinstance(x, Missing)]
    reports = [run(x, device=options.device) for x in found if isinstance(x, Adapter)]
    print(table.text(reports, missing))
    if options.docs:
        options.docs.write_text(page.markdown(reports, missing, options.device))
        print(f"\nwrote {options.docs}")
    return 1 if any(report.count(Status.WRONG) for report in reports) else 0
