"""Unpacks integers of any number of bits."""

from __future__ import annotations

import numpy as np


def from_bytes(packed: np.ndarray, width: int, count: int) -> np.ndarray:
    """Integers that follow each other bit by bit, each and each byte from its most significant bit on.

    Args:
        packed: ``(..., bytes)`` uint8, with ``ceil(count * width / 8)`` bytes or more.
        width: bits of an integer, 1 to 64.
        count: number of integers.

    Returns:
        ``(..., count)`` uint64.
    """
    bits = np.unpackbits(packed, axis=-1, count=count * width).reshape(*packed.shape[:-1], count, width)
    found = np.zeros(bits.shape[:-1], np.uint64)
    for i in range(width):
        found = (found << np.uint64(1)) | bits[..., i]
    return found


def from_words(packed: np.ndarray, width: int, count: int) -> np.ndarray:
    """Integers of which each 64-bit word holds ``64 // width``, the first one in its lowest bits.

    Args:
        packed: ``(..., words)`` uint64.
        width, count: as for :func:`from_bytes`, with ``width`` up to 63.

    Returns:
        ``(..., count)`` uint64.
    """
    shifts = np.arange(64 // width, dtype=np.uint64) * np.uint64(width)
    found = (packed[..., None] >> shifts) & np.uint64(2**width - 1)
    return found.reshape(*packed.shape[:-1], -1)[..., :count]


def bytes_of(width: int, count: int) -> int:
    """The bytes that ``count`` integers of ``width`` bits take in :func:`from_bytes`."""
    return -(-width * count // 8)
