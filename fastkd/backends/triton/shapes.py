"""Shapes of the kernels' programs: the candidates, and the table of defaults."""

from __future__ import annotations

from typing import NamedTuple

from fastkd.backends.triton.divergences import Formulas


class Shape(NamedTuple):
    """A program.

    ``registers`` is how many of a multiprocessor's 65,536 the compiler may use per thread: with 128, 512
    threads run at a time. If fewer programs run at a time, fewer rows are in progress, and the next sweep
    finds more of them in the second-level cache; but fewer programs then work while one waits for its threads
    to synchronise.
    """

    threads: int
    elements: int  # of each side that a thread reads at once
    registers: int

    def tile(self, itemsize: int) -> dict[str, int]:
        """The kernels' constants, for rows whose widest element has ``itemsize`` bytes. 16 bytes is the
        widest access of every GPU. A side of narrower elements gets no more of them per access, since both
        sides must give each thread the same columns."""
        width = 16 // itemsize
        return {"REPEAT": self.elements // width, "LANES": self.threads, "WIDTH": width}


# By the weight of a divergence's formulas.
CANDIDATES = {
    "light": (Shape(128, 16, 128), Shape(256, 16, 128), Shape(512, 16, 128), Shape(128, 8, 96)),
    "heavy": (Shape(128, 8, 168), Shape(256, 8, 128), Shape(512, 8, 128), Shape(128, 8, 128)),
}
# Metrics and records need twice as many sums.
RECORDING = Shape(128, 8, 168)
SCALE = Shape(128, 16, 128)
# These read numbers of rows in place of logits, ``elements`` rows at once.
WEIGHTS = Shape(512, 4096, 64)
TOTALS = Shape(512, 2048, 128)


def usual(formulas: Formulas, vocab: int) -> Shape:
    """The table of defaults: larger programs for rows that keep them busy."""
    return CANDIDATES[formulas.weight][1 if formulas.weight == "light" and vocab > 8192 else 0]
