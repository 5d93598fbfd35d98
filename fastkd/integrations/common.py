"""Parts that the adapters share: their refusals, the recognition of a library's classes, masks as labels."""

from __future__ import annotations

from torch import Tensor

from fastkd.errors import Unsupported

# A mask of valid tokens becomes labels 0 and -1, since the losses of the adapters read no label's value.
IGNORED = -1


def refusal(adapter: str, what: str, remedy: str) -> Unsupported:
    """The error of every adapter for what it cannot do, in one form of words."""
    return Unsupported(f"fastkd.integrations.{adapter} does not take {what}: {remedy}")


def ancestor(kind: type, name: str) -> type | None:
    """The class with the full name ``name`` that ``kind`` is or inherits from, found without importing it."""
    return next((c for c in kind.__mro__ if f"{c.__module__}.{c.__qualname__}" == name), None)


def owner(kind: type, attribute: str) -> type:
    """The class from which ``kind`` has its ``attribute``."""
    return next(c for c in kind.__mro__ if attribute in vars(c))


def labels_of(valid: Tensor) -> Tensor:
    """Labels ``(...)`` int64 for ``ignore_index=IGNORED`` from a mask ``(...)`` bool of valid tokens."""
    return valid.long() + IGNORED
