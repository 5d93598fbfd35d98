"""The sizes of the suite's problems."""

from __future__ import annotations

# Logits per tensor, whatever the vocabulary size: as many as in 512 rows of Qwen's head.
ELEMENTS = 512 * 151_936
VOCABULARIES = (8_192, 32_000, 128_256, 151_936, 262_144)
# Peers whose cost depends only on the size of the tensor are measured at this one vocabulary size.
VOCAB = 151_936
DTYPES = ("float32", "bfloat16")
