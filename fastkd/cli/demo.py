"""``fastkd demo``: a small distillation on this machine, without a network."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

ABOUT = """Distil a language model on real text, on this machine, in minutes and without a network: trains a
teacher, a student with it and the same student without it, and prints a table and the place of a
picture."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (fastkd demo --help lists the options)")


def main(argv: list[str]) -> int:
    parser = _Parser("fastkd demo", description=ABOUT, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--output-dir", type=Path, default=Path("fastkd-demo"), help="directory of the results"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the split, the models and the order of the data"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny sizes, to check that everything works; the results mean nothing",
    )
    parser.add_argument(
        "--docstrings",
        type=Path,
        metavar="DIR",
        help="only write train.jsonl and validation.jsonl for summarisation to DIR: functions of Python's "
        "own library (source) and the first line of their docstring (target)",
    )
    parser.add_argument(
        "--packages",
        action="store_true",
        help="with --docstrings: train on the functions of torch, transformers and other packages too; "
        "sources are then short and end in a line for a language model to go on from, and text.*.jsonl "
        "hold source and target as one text",
    )
    options = parser.parse_args(argv)
    if options.packages and options.docstrings is None:
        parser.error("--packages goes with --docstrings DIR")
    if options.docstrings is not None:
        from fastkd.demo import docstrings

        for name, count in docstrings.write(options.docstrings, options.seed, options.packages).items():
            print(f"{count:,} rows in {options.docstrings / name}.jsonl")
        return 0

    from fastkd.demo.run import run

    run(options.output_dir, options.seed, options.quick)
    return 0
