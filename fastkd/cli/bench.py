"""``fastkd bench``: the speed of the losses here, beside that of the memory and of other libraries."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import NoReturn

ABOUT = """Time fastkd and the losses that people use today on this machine, each checked against a float64
oracle first; print a table, and write results.json, table.txt and pictures to --out. Every measurement is
kept as it is made: the same command goes on where a run stopped. Peers: pip install 'fastkd[bench]'."""

GPU_AND_CPU = "(default on a GPU: {}; on a CPU: {})"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (fastkd bench --help lists the options)")


def _heads(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or "0" in match.groups():
        raise argparse.ArgumentTypeError(f"{text!r} is not STUDENT/TEACHER, such as 1024/2048")
    return int(match[1]), int(match[2])


def _defaults(name: str) -> str:
    """The defaults of one list of sizes, for ``--help``."""
    from fastkd.bench.plan import SIZES

    lists = [getattr(SIZES[device, False], name) for device in ("cuda", "cpu")]
    shown = [" ".join(f"{x[0]}/{x[1]}" if isinstance(x, tuple) else str(x) for x in found) for found in lists]
    return f"(default: {shown[0]})" if shown[0] == shown[1] else GPU_AND_CPU.format(*shown)


def _parser() -> argparse.ArgumentParser:
    from fastkd.bench.plan import OPS, SIZES

    parser = _Parser("fastkd bench", description=ABOUT)
    add = parser.add_argument
    add("--device", metavar="cuda|cpu", help="(default: cuda where torch sees a GPU, else cpu)")
    add("--op", nargs="+", default=list(OPS), metavar="NAME", help=f"(default: {' '.join(OPS)})")
    add("--vocab", nargs="+", type=int, metavar="V", help=_defaults("vocab"))
    add("--tokens", nargs="+", type=int, metavar="N", help=_defaults("tokens"))
    add("--heads", nargs="+", type=_heads, metavar="HS/HT", help="widths before heads " + _defaults("heads"))
    add("--dtype", nargs="+", metavar="NAME", help=_defaults("dtypes"))
    add(
        *("--divergence",),
        nargs="+",
        metavar="NAME",
        help="forward_kl with cross-entropy, the others alone " + _defaults("divergences"),
    )
    add("--backend", nargs="+", metavar="NAME", help="(default: native and triton, where they can run)")
    add("--peer", nargs="*", metavar="NAME", help="none with --peer alone (default: all that can run)")
    add(
        "--out",
        type=Path,
        default=Path("fastkd-bench"),
        help="where everything is put (default: %(default)s)",
    )
    add("--quick", action="store_true", help="one small size, to see that everything works (default: no)")
    budget = GPU_AND_CPU.format("no limit", f"{SIZES['cpu', False].budget:g}")
    add(
        "--budget",
        type=float,
        metavar="SECONDS",
        help=f"start no further case after so long; 0: no limit {budget}",
    )
    add("--fresh", action="store_true", help="measure again what --out holds already (default: no)")
    return parser


def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    if options.budget is not None and not options.budget >= 0:
        raise ValueError(f"--budget must be seconds, not {options.budget:g}")
    from fastkd.bench import plan, table
    from fastkd.bench.run import finish, run, wrong

    selection = plan.select(
        options.device,
        ops=options.op,
        vocab=options.vocab,
        tokens=options.tokens,
        heads=options.heads,
        dtypes=options.dtype,
        divergences=options.divergence,
        backends=options.backend,
        peers=options.peer,
        quick=options.quick,
    )
    budget = selection.sizes.budget if options.budget is None else options.budget or None
    found = run(selection, options.out, budget, options.fresh, ["fastkd", "bench", *argv])
    written = finish(found, options.out)
    print(table.text(found))
    for path in written:
        print(f"wrote {path}")
    mistakes = wrong(found)
    for sentence in mistakes:
        print(f"fastkd bench: {sentence}", file=sys.stderr)
    return 1 if mistakes else 0
