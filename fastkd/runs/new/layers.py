"""The stacks of layers in a model of any family, and the layers of the teacher that a student gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

# Fields of a config that count layers. `attribute_map` leads from the first name to a family's own.
COUNTS = ("num_hidden_layers", "encoder_layers", "num_encoder_layers", "num_layers", "n_layer", "n_layers")
DECODER_COUNTS = ("decoder_layers", "num_decoder_layers")


@dataclass(frozen=True)
class Stack:
    """The layers of a model, or of the encoder or the decoder of one.

    Attributes:
        part: ``encoder`` or ``decoder``; empty for a model with one stack.
        counts: the fields of the config that hold the number of its layers.
        lists: the names of the lists of modules with one entry for each layer. Most families have one list.
            Without any, all layers share their weights.
        length: the number of layers.
    """

    part: str
    counts: tuple[str, ...]
    lists: tuple[str, ...]
    length: int


def stacks(model: Any) -> list[Stack]:
    """The stacks of a model: one, or an encoder's and a decoder's.

    Raises:
        ValueError: a model whose config does not say how many layers it has.
    """
    config = model.config
    fields = config.to_dict()
    if not getattr(config, "is_encoder_decoder", False):
        return [_stack("", model, "", fields, _name(config, COUNTS[0]), COUNTS)]
    return [
        _stack("encoder", model, "encoder", fields, _name(config, COUNTS[0]), COUNTS),
        _stack("decoder", model, "decoder", fields, None, DECODER_COUNTS),
    ]


def _name(config: Any, name: str) -> str:
    return str((getattr(config, "attribute_map", None) or {}).get(name, name))


def _stack(
    part: str, model: Any, below: str, fields: dict[str, Any], own: str | None, counts: Sequence[str]
) -> Stack:
    names = [
        name for name in dict.fromkeys(filter(None, (own, *counts))) if isinstance(fields.get(name), int)
    ]
    if not names:
        what = f"the {part}" if part else "the model"
        raise ValueError(
            f"the config of {type(model).__name__} does not say how many layers {what} has: give a model "
            "with num_hidden_layers, or --architecture"
        )
    length = int(fields[names[0]])
    found: list[str] = []
    for name, module in model.named_modules():
        if below and below not in name.split("."):
            continue
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) == length and not inside:
            found.append(name)
    same = tuple(name for name in names if fields[name] == length)
    return Stack(part, same, tuple(found), length)


def chosen(stack: Stack, wanted: int | Sequence[int] | None) -> list[int]:
    """The teacher's layers, in order, that become those of the student: all without a wish, as many as
    wished evenly spread, or those that are named.

    Raises:
        ValueError: more layers than there are, a layer that does not exist, or a wrong order.
    """
    n, of = stack.length, f" of the {stack.part}" if stack.part else ""
    if wanted is None:
        return list(range(n))
    if isinstance(wanted, int):
        if wanted > n:
            raise ValueError(
                f"{wanted} layers cannot be chosen from the teacher's {n}{of}: ask for at most {n}"
            )
        return spread(wanted, n)
    if wrong := [layer for layer in wanted if not -n <= layer < n]:
        raise ValueError(f"the teacher has no layer {wrong[0]}{of}: its layers are 0 to {n - 1}")
    found = [layer % n for layer in wanted]
    if found != sorted(set(found)):
        raise ValueError(f"give the layers{of} in their order and each of them once, not {list(wanted)}")
    return found


def spread(wanted: int, there: int) -> list[int]:
    """``wanted`` of ``there`` layers, evenly spread from the first to the last.

    For 6 of 12 these are the layers 0, 2, 4, 7, 9 and 11, with which DistilBERT was initialised (Sanh et al.
    2019, https://arxiv.org/abs/1910.01108). A single layer is the first one, which reads the embeddings.
    """
    if wanted == 1:
        return [0]
    gaps = wanted - 1
    return [(2 * i * (there - 1) + gaps) // (2 * gaps) for i in range(wanted)]
