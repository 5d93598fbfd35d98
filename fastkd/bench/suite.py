"""The suite behind the project's results: its sizes, and the cases that they make.

Every case has about the same number of logits, whatever its vocabulary size, so that their times can be
compared. ``fastkd bench --suite`` runs the suite, and so does ``pytest bench --benchmark-only``.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastkd.bench.cases import KD_RATIO, MAIN, Case

VOCABULARIES = (8_192, 32_000, 128_256, 151_936, 262_144)
QUICK_VOCABULARIES = (32_000, 151_936)
# Whatever depends only on the size of the tensor is measured at this vocabulary size, Qwen's.
VOCAB = 151_936
# Logits per tensor, as many as in 512 rows of that vocabulary, and in a quick run.
ELEMENTS = 512 * VOCAB
QUICK_ELEMENTS = ELEMENTS // 4
DTYPES = ("float32", "bfloat16")
SECONDS = 2.0
# Widths before the heads of student and teacher: wide to measure time, narrow to measure memory.
WIDE, NARROW = (256, 512), (64, 128)


def tokens(vocab: int, elements: int) -> int:
    return max(1, elements // vocab)


def one_vocab(vocab: Sequence[int]) -> int:
    """The vocabulary size of everything that is measured at a single one."""
    return VOCAB if VOCAB in vocab else vocab[0]


def cases(
    device: str, ops: Sequence[str], vocab: Sequence[int], dtypes: Sequence[str], elements: int, quick: bool
) -> list[Case]:
    """The cases whose time is measured, in their order."""
    one, found = one_vocab(vocab), []
    if "kd_loss" in ops:
        for dtype in dtypes:
            found += [Case(v, tokens(v, elements), dtype, device) for v in vocab]
        if not quick:
            # Some peers compute no cross-entropy, so they are compared on the divergence alone.
            found += [
                Case(one, tokens(one, elements), dtype, device, divergence=MAIN, kd_ratio=1)
                for dtype in dtypes
            ]
    if "linear_kd_loss" in ops and "bfloat16" in dtypes:
        found.append(Case(one, tokens(one, elements), "bfloat16", device, *WIDE))
    return found


def memory_cases(
    device: str, ops: Sequence[str], vocab: Sequence[int], dtypes: Sequence[str], elements: int
) -> list[Case]:
    """The cases whose memory is measured and whose time is not."""
    if "linear_kd_loss" not in ops or "float32" not in dtypes:
        return []
    one = one_vocab(vocab)
    return [Case(one, tokens(one, 4 * elements), "float32", device, *NARROW)]


def measures_memory(case: Case, ours: bool, vocab: Sequence[int]) -> bool:
    """Whether the memory of a route is measured beside its time; a peer's at one vocabulary size only."""
    main = case.kd_ratio == KD_RATIO and not case.linear
    return main and (ours or case.vocab == one_vocab(vocab))
