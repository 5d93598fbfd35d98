"""The columns in which data sets hold pairs of texts."""

from __future__ import annotations

# Our own names come first, then those of well-known data sets.
PAIRS = (
    ("text", "text_pair"),
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("query", "passage"),
    # The first column was mapped to `text`, and the second one was left as it is.
    ("text", "hypothesis"),
    ("text", "sentence2"),
    ("text", "question2"),
)
PAIRED_COLUMNS = tuple(dict.fromkeys(name for pair in PAIRS for name in pair))
