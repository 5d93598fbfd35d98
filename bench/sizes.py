"""How large the problems of the suite are."""

from __future__ import annotations

# Every vocabulary gets as many tokens as make about this many logits: 512 rows of Qwen's head.
ELEMENTS = 512 * 151_936
VOCABULARIES = (8_192, 32_000, 128_256, 151_936, 262_144)
# The peers whose cost grows with the tensor alone are asked at one of them.
VOCAB = 151_936
DTYPES = ("float32", "bfloat16")
