"""Count the instructions of a kernel's loops in NVIDIA machine code (SASS), as ``cuobjdump`` prints it."""

from __future__ import annotations

import pathlib
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass

LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);")
# Instructions of the floating-point pipes. These issue twice as often as the pipe for comparisons, selects
# and integers.
FMA = ("FFMA", "FMUL", "FADD", "IMAD")


@dataclass(frozen=True)
class Instruction:
    address: int
    conditional: bool
    name: str
    operands: str

    @property
    def base(self) -> str:
        return self.name.partition(".")[0]

    @property
    def bytes(self) -> int:
        """Bytes that a memory access moves per thread."""
        parts = self.name.split(".")
        return 16 if "128" in parts else 8 if "64" in parts else 2 if {"U16", "S16"} & {*parts} else 4

    @property
    def target(self) -> int | None:
        """Address that a branch jumps to; None for other instructions."""
        found = re.search(r"0x([0-9a-f]+)", self.operands) if self.base == "BRA" else None
        return int(found[1], 16) if found else None


def cuobjdump(cubin: bytes, option: str) -> str:
    import triton

    tool = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, option, file.name], check=True, capture_output=True, text=True).stdout


def instructions(text: str) -> list[Instruction]:
    return [Instruction(int(m[1], 16), bool(m[2]), m[3], m[4]) for m in LINE.finditer(text)]


def loops(code: list[Instruction]) -> list[list[Instruction]]:
    """The innermost loops, without the code that a forward branch inside them may skip (the label's tile)."""
    spans = [(i.target, i.address) for i in code if i.target is not None and i.target < i.address]
    inner = [
        (first, last)
        for first, last in spans
        if not any((a, b) != (first, last) and first <= a and b <= last for a, b in spans)
    ]
    found = []
    for first, last in inner:
        body, until = [], 0
        for i in code:
            if first <= i.address <= last and i.address >= until:
                body.append(i)
                if i.conditional and i.target is not None and i.address < i.target <= last:
                    until = i.target
        found.append(body)
    return found


def summary(loop: list[Instruction], bytes_per_column: int) -> dict[str, float]:
    """Columns per turn and instructions per column of a loop that reads ``bytes_per_column`` of logits."""
    kinds = Counter(i.base for i in loop)
    columns = sum(i.bytes for i in loop if i.base == "LDG") / bytes_per_column
    if columns == 0:
        return {"columns": 0}
    reads = [n for n, i in enumerate(loop) if i.base == "LDG"]
    first_use = next((n for n, i in enumerate(loop) if i.base == "MUFU"), len(loop))
    return {
        "columns": columns,
        "all": len(loop) / columns,
        "special": kinds["MUFU"] / columns,
        "fma": sum(kinds[name] for name in FMA) / columns,
        "loads": kinds["LDG"],
        "narrow loads": sum(i.bytes < 16 for i in loop if i.base == "LDG"),
        "loads before use": sum(n < first_use for n in reads),
        "stores": kinds["STG"],
        "narrow stores": sum(i.bytes < 16 for i in loop if i.base == "STG"),
    }
