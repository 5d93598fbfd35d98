"""The shortest way through each loop of a CUDA kernel's machine code: what a turn costs that meets nothing
rare (an unaligned row, the label, a larger maximum)."""

from __future__ import annotations

import re
from collections import Counter

from sass import Instruction, instructions


def kernels(text: str) -> dict[str, list[Instruction]]:
    """Instructions by mangled name, of what ``cuobjdump -sass`` prints."""
    parts = re.split(r"Function : (\w+)", text)[1:]
    return {name: instructions(code) for name, code in zip(parts[::2], parts[1::2], strict=True)}


def turns(code: list[Instruction]) -> list[Counter[str]]:
    """Of each loop, the instructions of its shortest turn, by full name."""
    place = {instruction.address: n for n, instruction in enumerate(code)}
    found = []
    for last, branch in enumerate(code):
        if branch.target is None or branch.target > branch.address or branch.target not in place:
            continue
        path = _shortest(code, place, place[branch.target], last)
        if path:
            found.append(Counter(code[n].name for n in path))
    return found


def _shortest(code: list[Instruction], place: dict[int, int], first: int, last: int) -> list[int]:
    before: dict[int, int] = {first: -1}
    layer = [first]
    while layer and last not in before:
        following = []
        for n in layer:
            for after in _successors(code, place, n):
                if first <= after <= last and after not in before:
                    before[after] = n
                    following.append(after)
        layer = following
    if last not in before:
        return []
    path = [last]
    while path[-1] != first:
        path.append(before[path[-1]])
    return path


def _successors(code: list[Instruction], place: dict[int, int], n: int) -> list[int]:
    instruction = code[n]
    # A branch may also name a predicate of its own: BRA P0, or BRA.DIV.
    conditional = (
        instruction.conditional or "P" in instruction.operands.split("0x")[0] or "DIV" in instruction.name
    )
    if instruction.base == "EXIT" and not conditional:
        return []
    if instruction.base != "BRA":
        return [n + 1]
    jump = [place[instruction.target]] if instruction.target in place else []
    return [*jump, n + 1] if conditional else jump
