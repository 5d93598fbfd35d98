"""Shapes of the kernels' programs: which there are, and a table of which to take."""

from __future__ import annotations

from typing import NamedTuple

# What takes few registers per element. The others take logarithms or powers of each.
LIGHT = (None, "off_support", "forward_kl", "reverse_kl", "jeffreys", "tvd", "kl_tvd", "symmetric_jsd")


class Shape(NamedTuple):
    """A program.

    ``registers`` is what the compiler may use of a multiprocessor's 65,536 per thread: 512 threads share one
    at 128. Fewer programs at a time have fewer rows under way, more of which the next sweep still finds in
    the second-level cache; but then fewer others work while one waits for its threads to meet.
    """

    threads: int
    elements: int  # of each side that a thread reads at once
    registers: int

    def tile(self, itemsize: int) -> dict[str, int]:
        """The kernels' constants, for rows whose widest element takes ``itemsize`` bytes. 16 bytes is the
        widest access of every GPU; more of one side would be dealt to threads otherwise than the other's."""
        width = 16 // itemsize
        return {"REPEAT": self.elements // width, "LANES": self.threads, "WIDTH": width}


CANDIDATES = {
    "light": (Shape(128, 16, 128), Shape(256, 16, 128), Shape(512, 16, 128), Shape(128, 8, 96)),
    "heavy": (Shape(128, 8, 168), Shape(256, 8, 128), Shape(512, 8, 128), Shape(128, 8, 128)),
}
# Metrics and records take twice the sums.
RECORDING = Shape(128, 8, 168)
SCALE = Shape(128, 16, 128)


def weight(divergence: str | None) -> str:
    """Which list a divergence's kernels choose from."""
    return "light" if divergence in LIGHT else "heavy"


def usual(divergence: str | None, vocab: int) -> Shape:
    """The table: larger programs for rows that keep them busy."""
    return CANDIDATES[weight(divergence)][1 if divergence in LIGHT and vocab > 8192 else 0]
