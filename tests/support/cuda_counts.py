"""Count the instructions that a cluster kernel executes for a row, and what follows from that for its speed.

Two shares of the byte floor follow from the counts. The allowed one is an upper limit: it assumes that a
multiprocessor issues four instructions in every clock. The predicted one is a model with latencies.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from support.cuda_sass import Loop, graph_of, shortest
from support.cuda_sources import CSRC
from support.sass import Instruction

# An H100 SXM: multiprocessors, instructions of a warp per clock and multiprocessor, clock and copy bandwidth.
MULTIPROCESSORS, ISSUED, CLOCK_HZ, BANDWIDTH = 132, 4, 1.755e9, 3.0e12
# Shared memory of a multiprocessor, and what each block takes in addition to its share of the row.
SHARED, TAKEN, MOST = 233_472, 1_024 + 2_048, 232_448 - 2_048
LANES = 32
# The model's assumptions, none of which was measured: seconds from a block's launch to its first instruction,
# of one instruction that waits for the one before, from a copy's start to its first bytes, of a reduction
# over the cluster, and of the row's constants after it; and the share of issue slots that can be used.
LAUNCH, DEPENDENT, FIRST_BYTES, EXCHANGE, CONSTANTS, USABLE = 0.45e-6, 3.0e-9, 0.75e-6, 0.9e-6, 0.4e-6, 0.85


def _constant(file: str, name: str) -> int:
    """A constant of the CUDA sources, so that the model follows when it changes."""
    found = re.findall(rf"^constexpr \w+ {name} = (\d+);", (CSRC / "cuda" / file).read_text(), re.MULTILINE)
    assert len(found) == 1, f"{name} in {file}"
    return int(found[0])


THREADS = _constant("loss/kernel_cluster.cuh", "kClusterThreads")
STAGES = _constant("memory/staged.cuh", "kStages")
# Cross-entropy at temperature 1 or 2, per pair of logits. The shortest turns are those without it.
CROSS_ENTROPY = 4
VOCABULARIES = (32_000, 128_256, 151_936, 262_144)


@dataclass(frozen=True)
class Counts:
    """Instructions of a warp.

    Attributes:
        turns: the shortest turn of each sweep, for one group of 16 bytes of either side, by instruction.
        fixed: executed once for each row, outside the loops, where nothing rare occurs.
        before_copy: executed by the first thread until it starts the first copy.
    """

    turns: list[Counter[str]]
    fixed: int
    before_copy: int

    @property
    def of_group(self) -> int:
        return sum(turn.total() for turn in self.turns)


def turns_of(code: list[Instruction], sweeps: Iterable[Loop], load: str) -> list[Counter[str]]:
    """The shortest turns of the sweeps, in their order; that of the last one stores the gradient.

    A turn without a store exists, too: in a call for the teacher's gradient alone.
    """
    graph, loops = graph_of(code), list(sweeps)
    last = loops[-1]
    stores = [n for n in range(last.first, last.last + 1) if code[n].base == "STG"]
    ways = [(shortest(graph, last.first, n, last), shortest(graph, n, last.last, last)) for n in stores]
    path = min(([*a, *b[1:]] for a, b in ways if a and b), key=len)
    found = [Counter(code[n].name for n in nodes) for nodes in (*(loop.nodes for loop in loops[:-1]), path)]
    assert found[-1][load] == 2 and any(name.startswith("STG") for name in found[-1])
    return found


def counts_of(code: list[Instruction], sweeps: Iterable[Loop], load: str) -> Counts:
    """The counts of a kernel with these loops, in the order in which they run."""
    graph, loops = graph_of(code), list(sweeps)
    turns = turns_of(code, loops, load)
    reads = _per_row_reads(code)
    ends = [n for n, instruction in enumerate(code) if instruction.base == "EXIT"]
    fixed = _through(graph, 0, loops[0].first, reads) + _first_rescaling(code, graph, loops[0])
    # From one stage of the first sweep to the next, by way of the loop around it.
    fixed += (STAGES - 1) * _through(graph, loops[0].last + 1, loops[0].first, [])
    for before, after in itertools.pairwise(loops):
        fixed += _through(graph, before.last + 1, after.first, reads)
    fixed += min(n for end in ends if (n := _through(graph, loops[-1].last + 1, end, [])))
    copy = next(n for n, instruction in enumerate(code) if instruction.base == "UBLKCP")
    return Counts(turns, fixed, _through(graph, 0, copy, reads))


def _first_rescaling(code: list[Instruction], graph: list[list[int]], sweep: Loop) -> int:
    """The first group's additional instructions in the first sweep: it sets the maximum and rescales."""
    usual = {n for n in sweep.nodes if code[n].base == "MUFU"}
    others = [n for n in range(sweep.first, sweep.last) if code[n].name == "MUFU.EX2" and n not in usual]
    ways = [
        len(way) + len(back) - 1
        for n in others
        if (way := shortest(graph, sweep.first, n, sweep)) and (back := shortest(graph, n, sweep.last, sweep))
    ]
    return min(ways) - len(sweep.nodes)


def _per_row_reads(code: list[Instruction]) -> list[int]:
    """The reads of what a row has once: its weights, its label, and the label's logit.

    A path without them would be that of a call without labels. Before the first barrier the narrow reads are
    of columns at the row's edges, which only a few threads of an unaligned row make.
    """
    barrier = next(n for n, instruction in enumerate(code) if instruction.base == "BAR")
    reads = [n for n, instruction in enumerate(code) if instruction.base == "LDG"]
    return [n for n in reads if n > barrier or code[n].bytes >= 4]


def _through(graph: list[list[int]], first: int, last: int, places: list[int]) -> int:
    """The instructions on the shortest way from ``first`` to ``last`` by all ``places`` in between."""
    found, at = 1, first
    for place in [n for n in places if first < n < last] + [last]:
        way = shortest(graph, at, place)
        if not way:
            return 0
        found, at = found + len(way) - 1, place
    return found


def shape_for(vocab: int, element_bytes: int) -> tuple[int, int]:
    """The blocks of a row's cluster, as ``csrc/cuda/loss/cluster_shape.cu`` chooses them for many rows, and
    how many of them a multiprocessor holds."""
    vectors = -(-(vocab * element_bytes + 16 - element_bytes) // 16)
    for together, sizes in ((2, (1, 2, 4, 8)), (1, (1, 2, 4, 8, 16))):
        for blocks in sizes:
            size = -(-vectors // blocks) * 16 * 2
            if size <= MOST and together * (size + TAKEN) <= SHARED:
                return blocks, together
    raise ValueError(f"no cluster holds {vocab} columns")


def shares(counts: Counts, vocab: int, element_bytes: int) -> tuple[float, float]:
    """The shares of the byte floor that the counts allow, and that the model predicts, with cross-entropy."""
    blocks, together = shape_for(vocab, element_bytes)
    columns = 16 // element_bytes
    # The groups of a block, each of which is a lane's in a turn of its warp.
    turns = -(-vocab // (columns * blocks * LANES))
    of_group = counts.of_group + CROSS_ENTROPY * columns
    issue = ((THREADS // LANES) * counts.fixed + turns * of_group) / (ISSUED * CLOCK_HZ)
    floor = 3 * vocab * element_bytes / blocks / (BANDWIDTH / MULTIPROCESSORS)
    exchanges = len(counts.turns)
    waits = LAUNCH + DEPENDENT * counts.before_copy + FIRST_BYTES + EXCHANGE * exchanges + CONSTANTS
    # The blocks on a multiprocessor share its issue slots; the waits of one pass while another works.
    busy = max(together * issue / USABLE, waits + issue / USABLE)
    return floor / issue, min(1.0, together * floor / busy)


def tables(found: dict[tuple[str, int], Counts]) -> str:
    """The tables of ``docs/performance.md``, in Markdown, from the counts by name and bytes of an element."""
    lines = ["| | instructions a pair in the loops | outside them, a warp and row | before the first copy |"]
    lines.append("|---|---|---|---|")
    names = {2: "bfloat16", 4: "float32"}
    for (name, size), counts in found.items():
        in_loops = counts.of_group / (16 // size) + CROSS_ENTROPY
        lines.append(f"| {name}, {names[size]} | {in_loops:.1f} | {counts.fixed} | {counts.before_copy} |")
    lines += ["", "| allowed / predicted | " + " | ".join(f"V = {vocab:,}" for vocab in VOCABULARIES) + " |"]
    lines.append("|---" * (1 + len(VOCABULARIES)) + "|")
    for (name, size), counts in found.items():
        pairs = [shares(counts, vocab, size) for vocab in VOCABULARIES]
        cells = [f"{'over 1' if most >= 1 else f'{most:.2f}'} / {model:.2f}" for most, model in pairs]
        lines.append(f"| {name}, {names[size]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
