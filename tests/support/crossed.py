"""Teachers with another tokenizer than the student's, and oracles of the losses between the two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from support.tiny import llama
from support.vocabularies import tokenizer
from torch import Tensor

STUDENT, TEACHER = "bytes_300", "bytes_400"
ROWS = [
    {"prompt": "Q: the cat? ", "completion": "the cat sat on the mat"},
    {"prompt": "and the dog: ", "completion": "naïve café, the 日本語 text 😀"},
    {"prompt": "def ", "completion": "sat(cat, mat): return [cat for cat in mat]"},
    {"prompt": "the dog ", "completion": "sat"},
]


def teacher(folder: Path, seed: int = 1, kind: str = TEACHER, **options: Any) -> Any:
    """A saved teacher, as a run would load it."""
    from transformers import LlamaForCausalLM

    made = llama(seed, hidden=24, vocab=len(tokenizer(kind)) + 5, positions=128, **options)
    made.save_pretrained(folder)
    tokenizer(kind).save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder)


def student(seed: int = 0) -> Any:
    return llama(seed, vocab=len(tokenizer(STUDENT)), positions=128)


def binary(student: Tensor, teacher: Tensor, temperature: float, divergence: str) -> Tensor:
    """``T * D`` between the events "this span" and "another text", in float64."""
    p, q = ((side.double() / temperature).exp() for side in (teacher, student))
    pairs = [(p, q), (1 - p, 1 - q)]
    if divergence == "forward_kl":
        found = sum(a * (a / b).log() for a, b in pairs)
    elif divergence == "reverse_kl":
        found = sum(b * (b / a).log() for a, b in pairs)
    elif divergence == "tvd":
        found = sum((a - b).abs() / 2 for a, b in pairs)
    elif divergence == "jsd":
        found = sum(
            (a * (a / m).log() + b * (b / m).log()) / 2 for a, b, m in ((a, b, (a + b) / 2) for a, b in pairs)
        )
    else:
        raise ValueError(divergence)
    assert isinstance(found, Tensor)
    return temperature * found


def poisson(student: Tensor, teacher: Tensor) -> Tensor:
    """The limit of a high temperature."""
    a, b = -teacher.double(), -student.double()
    return b - a + a * (a / b).log()


def by_class(logits: Tensor, numbers: list[int], count: int, temperature: float) -> Tensor:
    """``(n, count)`` probabilities, in float64; columns without a class are left out."""
    parts = (logits.double() / temperature).softmax(-1)
    belongs = torch.zeros(logits.shape[-1], count, dtype=torch.float64)
    for column, number in enumerate(numbers):
        if number >= 0:
            belongs[column, number] = 1
    shares = parts @ belongs
    return shares / shares.sum(-1, keepdim=True)


def sorted_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """The sum over the ranks of the difference between two lists of probabilities."""
    q, p = (
        sorted(side.unbind(), key=lambda each: float(each.detach()), reverse=True)
        for side in (student, teacher)
    )
    found = student.new_zeros(())
    for rank in range(max(len(q), len(p))):
        a, b = (side[rank] if rank < len(side) else 0.0 for side in (q, p))
        found = found + abs(a - b)
    return found


def gold(
    student: Tensor,
    teacher: Tensor,
    tokens: tuple[Sequence[Any], Sequence[Any]],
    single: bool,
    temperature: float,
    divergence: str,
) -> Tensor:
    """The loss of GOLD at one span, in float64.

    Args:
        student, teacher: ``(V,)`` logits.
        tokens: the bytes of either side's tokens, of which there may be fewer than logits.
        single: whether the span is one token on both sides.
    """
    q, p = (
        (side[: len(known)].double() / temperature).softmax(-1)
        for side, known in zip((student, teacher), tokens, strict=True)
    )
    if not single:
        return temperature * sorted_distance(q, p)
    shared = [token for token in {*tokens[0]} if token in tokens[1]]
    rest = [
        side[[i for i, token in enumerate(known) if token not in shared]]
        for side, known in zip((q, p), tokens, strict=True)
    ]
    found = temperature * sorted_distance(*rest)
    if not shared:
        return found
    mine, theirs = (
        torch.stack(
            [
                sum((side[i] for i, token in enumerate(known) if token == one), q.new_zeros(()))
                for one in shared
            ]
        )
        for side, known in zip((q, p), tokens, strict=True)
    )
    a, b = theirs / theirs.sum(), mine / mine.sum()
    kinds = {
        "forward_kl": lambda: (a * (a / b).log()).sum(),
        "reverse_kl": lambda: (b * (b / a).log()).sum(),
        "tvd": lambda: (a - b).abs().sum() / 2,
    }
    return found + temperature**2 * kinds[divergence]()
