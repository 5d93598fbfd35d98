"""Fields of a config that say something of single layers, cut to the layers that a student keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastkd.runs.new.layers import Stack

# Fields below whose number all layers are of one kind: they become the number of such layers that are kept.
_THRESHOLDS = ("max_window_layers", "first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
# Lists that are of no layer, whatever their length.
_OF_NO_LAYER = ("architectures", "eos_token_id", "keys_to_ignore_at_inference", "suppress_tokens")


def cut(fields: dict[str, Any], stack: Stack, kept: Sequence[int]) -> dict[str, Any]:
    """The fields of a config that change when a stack keeps these layers, with their new values.

    A list with an entry for each layer keeps those of the layers that are kept. In a list of layers, which
    has ``layer`` or ``idx`` in its name, the layers get their new numbers.
    """
    place = {layer: i for i, layer in enumerate(kept)}
    found: dict[str, Any] = {name: len(kept) for name in stack.counts}
    for name, value in fields.items():
        if stack.part and (_part(name) or "encoder") != stack.part:
            continue
        if name in _THRESHOLDS and isinstance(value, int):
            found[name] = sum(layer < value for layer in kept)
        if not isinstance(value, (list, tuple)) or not value or name in _OF_NO_LAYER:
            continue
        if _numbers_layers(name, value, stack.length):
            found[name] = [place[layer] for layer in value if layer in place]
        elif len(value) == stack.length:
            found[name] = [value[layer] for layer in kept]
    # GPT-Neo writes the kinds of its layers twice: one by one, and as groups that repeat.
    if "attention_types" in fields and "attention_layers" in found:
        found["attention_types"] = [[[kind], 1] for kind in found["attention_layers"]]
    return found


def _part(name: str) -> str:
    return next((part for part in ("encoder", "decoder") if part in name), "")


def _numbers_layers(name: str, value: Sequence[Any], length: int) -> bool:
    """Whether a list holds the numbers of layers and not a value for each of them."""
    if not ("layer" in name or "idx" in name):
        return False
    if not all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < length for item in value):
        return False
    return len(value) != length or list(value) == list(range(length))
