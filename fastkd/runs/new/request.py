"""The sizes that a new model is asked to have."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

INITS = ("layers", "scratch")
ARCHITECTURES = ("llama", "t5", "bart", "bert")
# Fields that choose layers: a number of them, or a list of their numbers.
_CHOICES = ("layers", "decoder_layers")


@dataclass(frozen=True)
class Request:
    """The options of ``fastkd new`` that are not fields of a run's configuration.

    Raises:
        ValueError: an unknown architecture or kind of initial weights, or a size that is no whole number
            from 1.
    """

    layers: int | list[int] | None = field(
        default=None,
        metadata={
            "help": "Number of layers, or the teacher's layers to copy, as 0,3,6 ([3] for a single one); -1 "
            "is the last. Encoder and decoder alike."
        },
    )
    decoder_layers: int | list[int] | None = field(
        default=None, metadata={"help": "The same for the decoder of an encoder-decoder alone."}
    )
    hidden_size: int | None = field(default=None, metadata={"help": "Width of the hidden states."})
    intermediate_size: int | None = field(
        default=None, metadata={"help": "Width inside the feed-forward layers; in proportion if unset."}
    )
    num_attention_heads: int | None = field(
        default=None, metadata={"help": "Attention heads; in proportion if unset."}
    )
    num_key_value_heads: int | None = field(
        default=None, metadata={"help": "Heads of keys and values, where a model groups its heads."}
    )
    init: str | None = field(
        default=None,
        metadata={
            "help": "layers copies layers of the teacher with its embeddings, final norm and head; scratch "
            "draws all weights. If unset: layers, or scratch where a width changes."
        },
    )
    architecture: str | None = field(
        default=None,
        metadata={"help": "llama, t5, bart or bert: a model from nothing instead of a smaller teacher."},
    )
    vocab_size: int | None = field(
        default=None,
        metadata={"help": "Most tokens of a tokenizer that is trained on the data (8000 if unset)."},
    )

    def __post_init__(self) -> None:
        for name, choices in (("init", INITS), ("architecture", ARCHITECTURES)):
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise ValueError(f"{name} must be {' or '.join(choices)}, not {value!r}")
        for name in _sizes():
            value = getattr(self, name)
            if name in _CHOICES and value is not None and not _is_number(value):
                object.__setattr__(self, name, layer_list(name, value))
            elif value is not None and not (_is_number(value) and value >= 1):
                raise ValueError(f"{name} must be a whole number from 1, not {value!r}")

    @property
    def widths(self) -> dict[str, int]:
        """The widths that are asked for, by name."""
        names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def _sizes() -> list[str]:
    return [f.name for f in dataclasses.fields(Request) if f.name not in ("init", "architecture")]


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def layer_list(name: str, given: Any) -> list[int]:
    """The layers that ``0,3,6`` or a list names.

    Raises:
        ValueError: neither of the two.
    """
    parts = [part.strip() for part in given.split(",")] if isinstance(given, str) else given
    try:
        found = [int(part) for part in parts if part != ""]
    except (TypeError, ValueError):
        found = []
    if not found:
        raise ValueError(f"{name} must be a number of layers, or the layers to copy as 0,3,6, not {given!r}")
    return found
