"""Compares the CPU's instruction sets: ``python -m fastkd.bench.instruction_sets``.

Every divergence and dtype runs with each set that this CPU has, in turns over the same tensors, and a table
shows what share of the floor each reaches. The last line says whether the set that fastkd chooses by itself
is ever the slower one. ``--save FOLDER`` also writes the table there, named after the device.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fastkd import kd_loss
from fastkd.backends.native import cpu_isas, forced_isa
from fastkd.bench.cases import KD_RATIO, TEMPERATURE, Case, Problem, make_problem
from fastkd.bench.device import Cpu
from fastkd.bench.floor import copy_bandwidth
from fastkd.bench.run import stem
from fastkd.bench.suite import DTYPES, VOCAB
from fastkd.bench.versions import versions
from fastkd.divergences import DIVERGENCES

QUICK = ("forward_kl", "jsd", "tvd")
TOKENS, ROUNDS = 128, 7
# A set counts as slower than another one from this ratio on: less is noise.
SLOWER = 1.05

Row = tuple[str, str, dict[str, float], float]


def measured(problem: Problem, divergence: str, sets: Sequence[str], rounds: int) -> dict[str, float]:
    """Median seconds of a forward and backward with each instruction set, which take turns."""
    (student,), (teacher,) = problem.student, problem.teacher
    seconds: dict[str, list[float]] = {isa: [] for isa in sets}
    for number in range(rounds + 1):
        for isa in sets:
            student.grad = None
            began = time.perf_counter()
            with forced_isa(isa):
                kd_loss(
                    *(student, teacher, problem.labels),
                    divergence=divergence,
                    kd_ratio=KD_RATIO,
                    temperature=TEMPERATURE,
                ).backward()
            if number:  # the first round maps memory
                seconds[isa].append(time.perf_counter() - began)
    return {isa: statistics.median(found) for isa, found in seconds.items()}


def rows(divergences: Sequence[str], vocab: int, tokens: int, rounds: int) -> list[Row]:
    """Divergence, dtype, seconds by set, and the seconds of the floor, for each case."""
    found = []
    for dtype in DTYPES:
        case = Case(vocab, tokens, dtype)
        problem = make_problem(case)
        floor = case.least_bytes / copy_bandwidth(Cpu(), [problem.teacher[0]])
        for name in divergences:
            found.append((name, dtype, measured(problem, name, cpu_isas(), rounds), floor))
            print(f"{name} {dtype}", file=sys.stderr, flush=True)
    return found


def table(found: Sequence[Row]) -> str:
    """Markdown: the floor's share of every set, and the default's time over that of the next best."""
    sets = cpu_isas()
    beside = [isa for isa in sets if isa != sets[0]]
    head = ["divergence", "dtype", *sets, *(f"{sets[0]} / {isa}" for isa in beside)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, dtype, seconds, floor in found:
        shares = [f"{floor / seconds[isa]:.2f}" for isa in sets]
        ratios = [f"{seconds[sets[0]] / seconds[isa]:.2f}" for isa in beside]
        lines.append(f"| {' | '.join([name, dtype, *shares, *ratios])} |")
    return "\n".join(lines)


def verdict(found: Sequence[Row]) -> str:
    """A sentence on the instruction set that fastkd chooses by itself."""
    chosen, *others = cpu_isas()
    if not others:
        return f"{chosen} is the only instruction set here."
    slower = [
        f"{name} in {dtype} ({seconds[chosen] / seconds[isa]:.2f} times {isa}'s time)"
        for name, dtype, seconds, _ in found
        for isa in others
        if seconds[chosen] > SLOWER * seconds[isa]
    ]
    if not slower:
        return f"{chosen}, which fastkd chooses here, is nowhere the slower one."
    return (
        f"{chosen}, which fastkd chooses here, is the slower one for {', '.join(slower)}: if this shows in a "
        f"second run too, set FASTKD_CPU_ISA={others[0]}, and please report it with this table."
    )


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m fastkd.bench.instruction_sets", description="Compare the CPU's instruction sets."
    )
    parser.add_argument("--vocab", type=int, default=VOCAB)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    help = f"only {', '.join(QUICK)}: a few seconds"
    parser.add_argument("--quick", action="store_true", help=help)
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="also write the table there")
    options = parser.parse_args(argv)
    if not cpu_isas():
        print("the compiled kernels are not installed: nothing to compare", file=sys.stderr)
        return 1
    found = rows(
        QUICK if options.quick else tuple(DIVERGENCES), options.vocab, options.tokens, options.rounds
    )
    device, today = Cpu().name(), datetime.date.today().isoformat()
    text = "\n".join(
        [
            f"{device}, {today}, torch {versions()['torch']}",
            f"Share of the floor (one read of each side and one write at the speed of a copy), forward and "
            f"backward: {KD_RATIO:g} of the divergence at T = {TEMPERATURE:g} + {1 - KD_RATIO:g} of "
            f"cross-entropy, V = {options.vocab:,}, N = {options.tokens}, medians of {options.rounds}.",
            "",
            table(found),
            "",
            verdict(found),
        ]
    )
    print(text)
    if options.save is not None:
        options.save.mkdir(parents=True, exist_ok=True)
        path = options.save / f"instruction-sets-{stem(device, today)}.md"
        path.write_text(text + "\n")
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
