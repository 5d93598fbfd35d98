"""Find the shortest path through each loop of a CUDA kernel's machine code.

Its length is the cost of a turn in which nothing rare occurs (an unaligned row, the label, a larger maximum).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from support.sass import Instruction, instructions


def kernels(text: str) -> dict[str, list[Instruction]]:
    """The instructions of each kernel, by mangled name, from the output of ``cuobjdump -sass``."""
    parts = re.split(r"Function : (\w+)", text)[1:]
    return {name: instructions(code) for name, code in zip(parts[::2], parts[1::2], strict=True)}


@dataclass(frozen=True)
class Loop:
    """A loop's shortest turn: indices into the code, from the loop's first instruction to its last."""

    nodes: tuple[int, ...]

    @property
    def first(self) -> int:
        return self.nodes[0]

    @property
    def last(self) -> int:
        return self.nodes[-1]


def loops_of(code: list[Instruction]) -> list[Loop]:
    """The shortest turn of each loop."""
    graph = graph_of(code)
    place = {instruction.address: n for n, instruction in enumerate(code)}
    found = []
    for last, branch in enumerate(code):
        if branch.target is None or branch.target > branch.address or branch.target not in place:
            continue
        path = shortest(graph, place[branch.target], last, Loop((place[branch.target], last)))
        if path:
            found.append(Loop(tuple(path)))
    return found


def turns(code: list[Instruction]) -> list[Counter[str]]:
    """For each loop, how often each instruction (by full name) occurs in its shortest turn."""
    return [Counter(code[n].name for n in path.nodes) for path in loops_of(code)]


def graph_of(code: list[Instruction]) -> list[list[int]]:
    """The instructions that may follow each one, as indices into the code."""
    place = {instruction.address: n for n, instruction in enumerate(code)}
    return [[m for m in _successors(code, place, n) if m < len(code)] for n in range(len(code))]


def shortest(graph: list[list[int]], first: int, last: int, within: Loop | None = None) -> list[int]:
    """The shortest way from one instruction to another, both included; empty if there is none.

    Args:
        within: stay between the first and the last instruction of this loop.
    """
    low, high = (0, len(graph)) if within is None else (within.first, within.last)
    before: dict[int, int] = {first: -1}
    layer = [first]
    while layer and last not in before:
        following = []
        for n in layer:
            for after in graph[n]:
                if low <= after <= high and after not in before:
                    before[after] = n
                    following.append(after)
        layer = following
    if last not in before:
        return []
    path = [last]
    while path[-1] != first:
        path.append(before[path[-1]])
    return path[::-1]


def _successors(code: list[Instruction], place: dict[int, int], n: int) -> list[int]:
    instruction = code[n]
    # A branch is also conditional if its operands name a predicate (BRA P0) or if it is BRA.DIV.
    conditional = (
        instruction.conditional or "P" in instruction.operands.split("0x")[0] or "DIV" in instruction.name
    )
    if instruction.base == "EXIT" and not conditional:
        return []
    if instruction.base != "BRA":
        return [n + 1]
    jump = [place[instruction.target]] if instruction.target in place else []
    return [*jump, n + 1] if conditional else jump
