"""Tiny models and rows for scripts that run in the project's root, such as reproductions of a fault."""

from tests.support.tiny import VOCAB, llama, rows

__all__ = ["VOCAB", "llama", "rows"]
