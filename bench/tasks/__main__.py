"""Writes ``results.md`` and its pictures; see :mod:`bench.tasks`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.tasks.description import tasks_in
from bench.tasks.gradients import NAME, section
from bench.tasks.measured import measured
from bench.tasks.page import page, write
from bench.tasks.picture import draw
from bench.tasks.records import gathered


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tasks", description=__doc__)
    parser.add_argument("examples", type=Path, help="folder with a folder for each task")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the page (default: docs)")
    parser.add_argument(
        "--records",
        type=Path,
        default=Path("bench/results/tasks"),
        help="folder in which the numbers of all reports are kept (default: bench/results/tasks)",
    )
    options = parser.parse_args(arguments)
    try:
        tasks = [
            (task, measured(task, gathered(task, options.records))) for task in tasks_in(options.examples)
        ]
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    drawn = [(task, runs, draw(task, runs, options.out)) for task, runs in tasks]
    text = page(drawn, options.examples.as_posix(), options.out.as_posix())
    if (gradients := options.records / NAME).is_file():
        text = "\n".join([text, *section(json.loads(gradients.read_text("utf-8")))])
    path = write(options.out, text)
    missing = [
        f"{task.folder.name}/{one.run.report}" for task, runs in tasks for one in runs if not one.reports
    ]
    print(f"wrote {path}")
    if missing:
        print(f"missing: {', '.join(dict.fromkeys(missing))}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
