"""``fastkd bench``: the speed of the losses on this machine, beside its memory's and other libraries'."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import NoReturn

ABOUT = """Time fastkd and the losses that people use today on this machine, each checked against a float64
oracle first; print a table, and write results.json, table.txt and pictures to --out. Every measurement is
written as soon as it is made: the same command resumes a run that stopped. --suite runs what stands behind
the project's own results. Peers: pip install 'fastkd[bench]'."""

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
    from fastkd.bench.options import SIZES

    lists = [getattr(SIZES[device, False], name) for device in ("cuda", "cpu")]
    shown = [" ".join(f"{x[0]}/{x[1]}" if isinstance(x, tuple) else str(x) for x in found) for found in lists]
    return f"(default: {shown[0]})" if shown[0] == shown[1] else GPU_AND_CPU.format(*shown)


def _parser() -> argparse.ArgumentParser:
    from fastkd.bench.options import OPS, SIZES
    from fastkd.bench.suite import ELEMENTS

    parser = _Parser("fastkd bench", description=ABOUT)
    add = parser.add_argument
    add("--device", metavar="cuda|cpu", help="(default: cuda where torch sees a GPU, else cpu)")
    add("--op", nargs="+", default=list(OPS), metavar="NAME", help=f"(default: {' '.join(OPS)})")
    add("--vocab", nargs="+", type=int, metavar="V", help=_defaults("vocab"))
    add("--tokens", nargs="+", type=int, metavar="N", help=_defaults("tokens"))
    add("--heads", nargs="+", type=_heads, metavar="HS/HT", help="widths before heads " + _defaults("heads"))
    add("--dtype", nargs="+", metavar="NAME", help=_defaults("dtypes"))
    help = "forward_kl with cross-entropy, the others alone " + _defaults("divergences")
    add("--divergence", nargs="+", metavar="NAME", help=help)
    add("--backend", nargs="+", metavar="NAME", help="(default: native and triton, where they can run)")
    add("--peer", nargs="*", metavar="NAME", help="none with --peer alone (default: all that can run)")
    help = "kd_loss in other forms, such as jsd; none with --variant alone (default: none; with --suite all)"
    add("--variant", nargs="*", metavar="NAME", help=help)
    help = (
        "vocabularies at the same number of logits, both allocator modes, variants; 15 minutes (default: no)"
    )
    add("--suite", action="store_true", help=help)
    help = f"logits per tensor of the suite and the variants (default: {ELEMENTS}; with --quick a quarter)"
    add("--elements", type=int, metavar="COUNT", help=help)
    help = "on a CPU, each in its own process (default: that of this process; with --suite default and kept)"
    add("--allocator", nargs="+", metavar="default|kept", help=help)
    help = "where everything is put (default: %(default)s)"
    add("--out", type=Path, default=Path("fastkd-bench"), help=help)
    help = "also write <device>-<date>.json and .txt there (default: no)"
    add("--save", type=Path, metavar="FOLDER", help=help)
    help = "one small size, to see that everything works; with --suite two vocabularies (default: no)"
    add("--quick", action="store_true", help=help)
    limit = GPU_AND_CPU.format("no limit", f"{SIZES['cpu', False].budget:g}; with --suite no limit")
    help = f"start no further case after so long; 0: no limit {limit}"
    add("--budget", type=float, metavar="SECONDS", help=help)
    add("--fresh", action="store_true", help="measure again what --out holds already (default: no)")
    return parser


def _allocators(device: str, given: list[str] | None, suite: bool) -> list[str]:
    """The allocator modes to measure in; none to measure in this process."""
    from fastkd.bench.allocators import MODES

    for name in given or ():
        if name not in MODES:
            raise ValueError(f"unknown allocator {name!r}: choose from {', '.join(MODES)}")
    if device == "cpu":
        return list(dict.fromkeys(given or (MODES if suite else ())))
    if given:
        raise ValueError("--allocator is for a CPU: on a GPU the memory comes from torch's own allocator")
    return []


def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    if options.budget is not None and not options.budget >= 0:
        raise ValueError(f"--budget must be seconds, not {options.budget:g}")
    from fastkd.bench import allocators, render
    from fastkd.bench.options import select
    from fastkd.bench.run import finish, run, save, wrong

    arguments = {
        "device": options.device,
        "ops": options.op,
        "vocab": options.vocab,
        "tokens": options.tokens,
        "heads": options.heads,
        "dtypes": options.dtype,
        "divergences": options.divergence,
        "backends": options.backend,
        "peers": options.peer,
        "variants": options.variant,
        "elements": options.elements,
        "suite": options.suite,
        "quick": options.quick,
    }
    selection = select(**arguments)
    modes = _allocators(selection.device, options.allocator, options.suite)
    budget = selection.sizes.budget if options.budget is None else options.budget or None
    command = ["fastkd", "bench", *argv]
    if modes:
        found = allocators.run(modes, arguments, options.out, budget, options.fresh, command)
    else:
        found = run(selection, options.out, budget, options.fresh, command)
    written = finish(found, options.out)
    print(render.text(found))
    for path in written:
        print(f"wrote {path}")
    for path in save(found, options.save) if options.save else ():
        print(f"saved {path}")
    mistakes = wrong(found)
    for sentence in mistakes:
        print(f"fastkd bench: {sentence}", file=sys.stderr)
    return 1 if mistakes else 0
