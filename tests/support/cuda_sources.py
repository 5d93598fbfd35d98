"""List the CUDA files as CMake compiles them: ``instance.cu`` once for each divergence of ``list.h``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

CSRC = Path(__file__).parents[2] / "csrc"
INSTANCE = CSRC / "cuda" / "loss" / "instance.cu"


class Unit(NamedTuple):
    source: Path
    flags: tuple[str, ...]


def divergences() -> dict[str, str]:
    """The name of each divergence's functor, by the divergence's name."""
    entries = re.findall(r"^ *X\((\w+), (\w+),", (CSRC / "divergences" / "list.h").read_text(), re.MULTILINE)
    assert len(entries) > 10
    return dict(entries)


def units() -> dict[str, Unit]:
    """The translation units, by file name; those of ``instance.cu`` by the divergence's name."""
    files = {path.name: Unit(path, ()) for path in sorted(CSRC.glob("cuda/**/*.cu")) if path != INSTANCE}
    made = {name: Unit(INSTANCE, (f"-DFASTKD_FUNCTOR={functor}",)) for name, functor in divergences().items()}
    return files | made
