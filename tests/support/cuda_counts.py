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

from support.cuda_sass import Loop, graph_of, loops_of, shortest
from support.cuda_sources import CSRC
from support.sass import Instruction

# An H100 SXM: multiprocessors, instructions of a warp per clock and multiprocessor, clock and copy bandwidth.
MULTIPROCESSORS, ISSUED, CLOCK_HZ, BANDWIDTH = 132, 4, 1.755e9, 3.0e12
# Shared memory of a multiprocessor, what a kernel declares itself, what each block takes in addition to its
# share of the row, and the largest such share.
SHARED, DECLARED = 233_472, 512
TAKEN, MOST = 1_024 + DECLARED, 232_448 - DECLARED
LANES = 32
# The model's assumptions, none of which was measured, in seconds. A cluster waits once from its launch to its
# first instruction, for each instruction before the first copy, and from there to the first bytes. A row
# waits for an exchange between the blocks with its reductions, for its constants after that, and for a
# barrier at the end of each stage of the last sweep. USABLE is the share of issue slots that can be used.
LAUNCH, DEPENDENT, FIRST_BYTES = 0.45e-6, 3.0e-9, 0.75e-6
EXCHANGE, CONSTANTS, BARRIER, USABLE = 0.9e-6, 0.4e-6, 0.05e-6, 0.85


def _constant(file: str, name: str) -> int:
    """A constant of the CUDA sources, so that the model follows when it changes."""
    found = re.findall(rf"^constexpr \w+ {name} = (\d+);", (CSRC / "cuda" / file).read_text(), re.MULTILINE)
    assert len(found) == 1, f"{name} in {file}"
    return int(found[0])


THREADS = _constant("loss/kernel_cluster.cuh", "kClusterThreads")
STAGES = _constant("memory/staged.cuh", "kStages")
ROWS = _constant("loss/cluster_shape.h", "kMostRows")  # that a cluster takes, where they are many
# Cross-entropy at temperature 1 or 2, per pair of logits. The shortest turns are those without it.
CROSS_ENTROPY = 4
# A packet's sums are rescaled by this many exponentials at most; a group of logits has more.
MOST_FACTORS = 6
VOCABULARIES = (32_000, 128_256, 151_936, 262_144)


@dataclass(frozen=True)
class Counts:
    """Instructions of a warp.

    Attributes:
        turns: the shortest turn of each sweep, for one group of 16 bytes of either side, by instruction.
        fixed: executed once for each row, outside the loops, where nothing rare occurs.
        first: the same for a block's first warp, which adds up the packets of all warps.
        last: the same for its last warp, which looks for the next row and copies it.
        packets, first_packets: executed for each 32 packets beyond the first 32.
        before_copy: executed once in a block, until it starts the first copy.
    """

    turns: list[Counter[str]]
    fixed: int
    first: int
    last: int
    packets: int
    first_packets: int
    before_copy: int
    keeping: Counts | None = None  # of a kernel whose second sweep can keep logarithms: where it does

    def outside(self, warps: int, blocks: int) -> float:
        """Instructions outside the loops, on average over the warps of a block."""
        more = -(-blocks * warps // LANES) - 1
        others = self.last + (warps - 2) * self.fixed + (warps - 1) * more * self.packets
        return (self.first + more * self.first_packets + others) / warps

    @property
    def of_group(self) -> int:
        return sum(turn.total() for turn in self.turns)


def turns_of(code: list[Instruction], sweeps: Iterable[Loop], load: str, keeps: bool) -> list[Counter[str]]:
    """The shortest turns of the sweeps, in their order; that of the last one stores the gradient.

    A turn without a store exists, too: in a call for the teacher's gradient alone.

    Args:
        keeps: whether the second sweep keeps logarithms for the last one.
    """
    graph, loops = graph_of(code), list(sweeps)

    def turn_with(loop: Loop, store: str) -> list[int]:
        stores = [n for n in range(loop.first, loop.last + 1) if code[n].base == store]
        ways = [(shortest(graph, loop.first, n, loop), shortest(graph, n, loop.last, loop)) for n in stores]
        return min(([*a, *b[1:]] for a, b in ways if a and b), key=len)

    paths = [list(loop.nodes) for loop in loops]
    paths[-1] = turn_with(loops[-1], "STG")
    if keeps:
        paths[1] = turn_with(loops[1], "STS")
    found = [Counter(code[n].name for n in nodes) for nodes in paths]
    assert found[-1][load] >= 2 and any(name.startswith("STG") for name in found[-1])
    return found


def counts_of(code: list[Instruction], sweeps: Iterable[Loop], load: str, keeps: bool = False) -> Counts:
    """The counts of a kernel with these loops, in the order in which they run."""
    graph, loops = graph_of(code), list(sweeps)
    turns = turns_of(code, loops, load, keeps)
    # The loops over packets come between the sweeps: all warps look for the maxima, the first one adds up.
    packets = [loop for loop in packet_loops(code) if loops[0].last < loop.first < loops[-1].first]
    maxima, again = [loop for loop in packets if any(code[n].base == "FMNMX" for n in loop.nodes)]
    packets.remove(again)  # of the few rows that are swept again
    assert maxima is packets[0] and len(packets) == len(loops)
    rows = next(x for x in loops_of(code) if x.first < loops[0].first and loops[-1].last < x.last)
    # Without the way back to the next row, whatever can be reached belongs to the same row.
    row = [[m for m in after if (n, m) != (rows.last, rows.first)] for n, after in enumerate(graph)]
    barrier = next(n for n, instruction in enumerate(code) if instruction.base == "BAR" and n > rows.first)
    reads = [n for n in _per_row_reads(code, barrier) if rows.first <= n <= rows.last]
    before = [n for n in reads if n < barrier]
    at_packets = packets[1].first  # the first warp adds up, while the last one looks for the next row
    by_first = [
        n for n in reads if n > barrier and (shortest(row, at_packets, n) or shortest(row, n, at_packets))
    ]
    by_last = [n for n in reads if n > barrier and n not in by_first]
    ways = [n for loop in packets for n in (loop.first, loop.last)]
    # The copies of the last sweep: those of the first row come before the first sweep.
    copies = [n for n, x in enumerate(code) if x.base == "UBLKCP" and loops[-1].last < n]
    copies = copies[: len([n for n, x in enumerate(code) if x.base == "UBLKCP" and n < loops[0].first])]
    fixed = _outside(row, loops, rows, sorted(before + ways[:2]), [], code)
    first = _outside(row, loops, rows, sorted(before + by_first + ways), [], code)
    last = _outside(row, loops, rows, sorted(before + ways[:2] + by_last), copies, code)
    copy = next(n for n, instruction in enumerate(code) if instruction.base == "UBLKCP")
    lengths = [len(loop.nodes) for loop in packets]
    until_copy = _through(graph, 0, copy, before)
    return Counts(turns, fixed, first, last, lengths[0], sum(lengths), until_copy)


def _outside(
    graph: list[list[int]],
    loops: list[Loop],
    rows: Loop,
    places: list[int],
    copies: list[int],
    code: list[Instruction],
) -> int:
    """The instructions of a row outside the loops on the shortest way by all ``places``.

    Args:
        rows: the loop over the rows.
        copies: executed at the end of each stage of the last sweep.
    """
    first, last = loops[0], loops[-1]
    found = _through(graph, rows.first, first.first, places) + _first_rescaling(code, graph, first)
    # From one stage of a sweep to the next, by way of the loop around it.
    found += (STAGES - 1) * _through(graph, first.last + 1, first.first, [])
    found += (STAGES - 1) * _through(graph, last.last + 1, last.first, copies)
    for before, after in itertools.pairwise(loops):
        found += _through(graph, before.last + 1, after.first, places)
    return found + _through(graph, last.last + 1, rows.last, copies)


def packet_loops(code: list[Instruction]) -> list[Loop]:
    """The loops over the packets of the row's warps: they read shared memory, and have few exponentials."""
    found = []
    for loop in loops_of(code):
        turn = Counter(code[n].base for n in loop.nodes)
        stores = any(code[n].base == "STG" for n in range(loop.first, loop.last))
        if turn["LDS"] and turn["MUFU"] <= MOST_FACTORS and not stores:
            found.append(loop)
    return found


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


def _per_row_reads(code: list[Instruction], barrier: int) -> list[int]:
    """The reads of what a row has once: its weights and its label.

    A path without them would be that of a call without labels. Before the first barrier the narrow reads are
    of columns at the row's edges, which only a few threads of an unaligned row make.
    """
    reads = [n for n, instruction in enumerate(code) if instruction.base == "LDG"]
    return [n for n in reads if n > barrier or code[n].bytes >= 4]


def _through(graph: list[list[int]], first: int, last: int, places: list[int]) -> int:
    """The instructions on the shortest way from ``first`` to ``last`` by all ``places`` in between.

    If the way leads back, it is by all ``places``.
    """
    found, at = 1, first
    for place in [n for n in places if first < n < last or last < first] + [last]:
        way = shortest(graph, at, place)
        if not way:
            return 0
        found, at = found + len(way) - 1, place
    return found


def shape_for(vocab: int, element_bytes: int, sides: int = 2) -> tuple[int, int]:
    """The blocks of a row's cluster, as ``csrc/cuda/loss/cluster_shape.cu`` chooses them for many rows, and
    how many of them a multiprocessor holds."""
    vectors = -(-(vocab * element_bytes + 16 - element_bytes) // 16)
    for together, blocks in itertools.product((2, 1), (1, 2, 4, 8, 16)):
        # Two buffers of packets of two vectors each, one from each warp of the cluster.
        size = -(-vectors // blocks) * 16 * sides + 2 * (THREADS // LANES) * blocks * 2 * 16
        if size <= MOST and together * (size + TAKEN) <= SHARED:
            return blocks, together
    raise ValueError(f"no cluster holds {vocab} columns")


def keeping_shape(vocab: int, element_bytes: int) -> tuple[int, int] | None:
    """The shape with room for logarithms, if it is as good as the one without, as in ``launch.cuh``."""
    blocks, together = shape_for(vocab, element_bytes)
    more_blocks, more_together = shape_for(vocab, element_bytes, sides=2 if element_bytes == 4 else 3)
    as_good = more_together >= together and (more_together > 1 or more_blocks <= max(blocks, 8))
    return (more_blocks, more_together) if as_good else None


def shares(counts: Counts, vocab: int, element_bytes: int) -> tuple[float, float]:
    """The shares of the byte floor that the counts allow, and that the model predicts, with cross-entropy."""
    blocks, together = shape_for(vocab, element_bytes)
    if counts.keeping and (keeping := keeping_shape(vocab, element_bytes)):
        (blocks, together), counts = keeping, counts.keeping
    columns = 16 // element_bytes
    # The groups of a block, each of which is a lane's in a turn of its warp.
    turns = -(-vocab // (columns * blocks * LANES))
    of_group = counts.of_group + CROSS_ENTROPY * columns
    warps = THREADS // LANES
    issue = (warps * counts.outside(warps, blocks) + turns * of_group) / (ISSUED * CLOCK_HZ)
    floor = 3 * vocab * element_bytes / blocks / (BANDWIDTH / MULTIPROCESSORS)
    exchanges = len(counts.turns) - 1  # between the sweeps
    waits = (LAUNCH + DEPENDENT * counts.before_copy + FIRST_BYTES) / ROWS
    waits += EXCHANGE * exchanges + CONSTANTS + BARRIER * STAGES
    # The blocks on a multiprocessor share its issue slots; the waits of one pass while another works.
    busy = max(together * issue / USABLE, waits + issue / USABLE)
    return floor / issue, min(1.0, together * floor / busy)


def tables(found: dict[tuple[str, int], Counts]) -> str:
    """The tables of ``docs/performance.md``, in Markdown, from the counts by name and bytes of an element."""
    outside = "outside, by row: a warp; the first; the last"
    lines = [
        f"| | instructions a pair in the loops | {outside} | before the first copy |",
        "|---|---|---|---|",
    ]
    names = {2: "bfloat16", 4: "float32"}
    for (name, size), counts in found.items():
        for title, of_title in ((name, counts), (f"{name}, logarithms kept", counts.keeping)):
            if of_title:
                in_loops = of_title.of_group / (16 // size) + CROSS_ENTROPY
                fixed = f"{of_title.fixed}; {of_title.first}; {of_title.last} | {of_title.before_copy}"
                lines.append(f"| {title}, {names[size]} | {in_loops:.1f} | {fixed} |")
    lines += ["", "| allowed / predicted | " + " | ".join(f"V = {vocab:,}" for vocab in VOCABULARIES) + " |"]
    lines.append("|---" * (1 + len(VOCABULARIES)) + "|")
    for (name, size), counts in found.items():
        pairs = [shares(counts, vocab, size) for vocab in VOCABULARIES]
        cells = [f"{'over 1' if most >= 1 else f'{most:.2f}'} / {model:.2f}" for most, model in pairs]
        lines.append(f"| {name}, {names[size]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
