"""Test which cases ``fastkd bench`` measures, and in which order."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastkd.bench import options, plan
from fastkd.bench.peers import PEERS, ROUTES


def gpu_selection(**changes: Any) -> options.Selection:
    ours = [r for r in ROUTES.values() if r.name in ("fastkd native", "fastkd triton")]
    sizes = dataclasses.replace(options.SIZES["cuda", False], **changes)
    return options.Selection("cuda", options.OPS, sizes, (*ours, *PEERS), {})


def test_a_gpu_measures_the_most_important_first() -> None:
    cases = plan.cases(gpu_selection())
    first = cases[0]
    assert (first.op, first.dtype, first.tokens, first.quantity) == (
        *("kd_loss", "bfloat16", 8192),
        "0.5 forward_kl (T = 2) + 0.5 cross-entropy",
    )
    leading = [c for c in cases if c.dtype == "bfloat16" and c.tokens == 8192]
    assert cases[: len(leading)] == leading
    order = list(dict.fromkeys((c.op, c.divergence, c.kd_ratio) for c in leading))
    assert order[:4] == [
        ("kd_loss", "forward_kl", 0.5),
        ("linear_kd_loss", "forward_kl", 0.5),
        ("kd_loss", "jsd", 1.0),
        ("kd_loss", "tvd", 1.0),
    ]
    assert len(set(cases)) == len(cases)


def test_a_gpu_measures_all_shapes() -> None:
    cases = plan.cases(gpu_selection())
    for divergence in ("forward_kl", "jsd", "tvd"):
        shapes = {
            (c.dtype, c.tokens, c.vocab)
            for c in cases
            if c.op == "kd_loss" and c.divergence == divergence and c.backward
        }
        assert shapes == {
            (dtype, tokens, vocab)
            for dtype in ("bfloat16", "float32")
            for tokens in (2048, 8192, 16384)
            for vocab in (32_000, 50_257, 128_256, 151_936, 262_144)
        }
    heads = {(c.student_width, c.teacher_width) for c in cases if c.linear}
    assert heads == {(1024, 2048), (2048, 4096)}
    assert any(not c.backward for c in cases)
    assert any(c.linear and c.kd_ratio == 0 for c in cases)  # to compare with F.linear_cross_entropy
