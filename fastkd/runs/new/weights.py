"""Copies the teacher's chosen layers, and checks that each of them does the same in its new place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastkd.corpora.listing import listed
from fastkd.runs.new.layers import Stack

Kept = Sequence[tuple[Stack, Sequence[int]]]
# Attributes that only say where a layer is. T5's first layer holds the position biases of all.
_PLACE = {
    "layer_idx", "layer_id", "layer_index", "layer_number", "block_idx", "idx", "training",
    "has_relative_attention_bias",
}  # fmt: skip
_CHOOSE_OTHERS = "name the layers with --layers, so that each takes the place of a layer of its own kind"


def copy_weights(student: Any, teacher: Any, kept: Kept) -> None:
    """Give the student the layers of the teacher that it keeps, and all weights outside of layers.

    Raises:
        ValueError: a layer that has other weights, or does something else, in its new place.
    """
    given: Mapping[str, Tensor] = teacher.state_dict()
    wanted: Mapping[str, Tensor] = student.state_dict()
    taken: dict[str, Tensor] = {}
    for name, into in wanted.items():
        source = _source(name, kept)
        if source not in given:
            source = name  # T5 has its position biases in the first layer, whichever that is
        if source not in given:
            raise ValueError(f"the layers {_kept_text(kept)} have no weight for {name}: {_CHOOSE_OTHERS}")
        if given[source].shape != into.shape:
            raise ValueError(
                f"{source} of the teacher has the shape {tuple(given[source].shape)} and {name} of the "
                f"student {tuple(into.shape)}: {_CHOOSE_OTHERS}"
            )
        taken[name] = given[source]
    left = [name for name in given if _is_kept(name, kept) and _target(name, kept) not in wanted]
    if left:
        raise ValueError(f"the student has no place for the teacher's {listed(left)}: {_CHOOSE_OTHERS}")
    student.load_state_dict(taken, assign=True)  # in the dtypes of the teacher
    student.tie_weights()
    for stack, layers in kept:
        for place, layer in enumerate(layers):
            if stack.lists and (found := _difference(student, teacher, stack, place, layer)):
                raise ValueError(
                    f"layer {layer} of the teacher would do something else as layer {place} of the student "
                    f"({found}): {_CHOOSE_OTHERS}"
                )
    if getattr(teacher.config, "scale_attn_by_inverse_layer_idx", False) and any(
        list(layers) != list(range(len(layers))) for _, layers in kept
    ):
        raise ValueError(
            "the teacher divides its attention by the number of each layer "
            "(scale_attn_by_inverse_layer_idx), so only its first layers keep their meaning: name them with "
            "--layers"
        )


def _source(name: str, kept: Kept) -> str:
    """The name in the teacher of a weight of the student."""
    return _renumbered(name, kept, lambda layers, number: layers[number])


def _target(name: str, kept: Kept) -> str:
    """The name in the student of a weight of the teacher, whose layer is kept."""
    return _renumbered(name, kept, lambda layers, number: list(layers).index(number))


def _renumbered(name: str, kept: Kept, number: Callable[[Sequence[int], int], int]) -> str:
    """The name with another number of its layer, if it is that of a weight in a layer."""
    for stack, layers in kept:
        for top in stack.lists:
            if (found := _split(name, top)) is not None:
                return f"{top}.{number(layers, found[0])}{found[1]}"
    return name


def _is_kept(name: str, kept: Kept) -> bool:
    return all(
        found[0] in layers
        for stack, layers in kept
        for top in stack.lists
        if (found := _split(name, top)) is not None
    )


def _split(name: str, top: str) -> tuple[int, str] | None:
    """The number of the layer below a list of layers, and the rest of the name; None if it is elsewhere."""
    if not name.startswith(f"{top}."):
        return None
    number, dot, rest = name[len(top) + 1 :].partition(".")
    return (int(number), f"{dot}{rest}") if number.isdigit() else None


def _kept_text(kept: Kept) -> str:
    return " and ".join(", ".join(map(str, layers)) for _, layers in kept)


def _difference(student: Any, teacher: Any, stack: Stack, place: int, layer: int) -> str | None:
    """The first difference, besides weights, between a layer in its old place and in its new one."""
    for top in stack.lists:
        new, old = student.get_submodule(f"{top}.{place}"), teacher.get_submodule(f"{top}.{layer}")
        theirs = dict(old.named_modules())
        for name, module in new.named_modules():
            other = theirs.get(name)
            if other is None:
                continue
            if type(module) is not type(other):
                return f"{type(other).__name__} would become {type(module).__name__}"
            mine = dict(_plain(module))
            for key, value in _plain(other):
                if mine.get(key, value) != value:
                    return f"{key} would be {mine[key]!r} instead of {value!r}"
    return None


def _plain(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for key, value in vars(module).items():
        plain = isinstance(value, (bool, int, float, str, type(None)))
        if plain and key not in _PLACE and not key.startswith("_"):
            yield key, value


def same_weights(one: Any, other: Any) -> bool:
    """Whether two models have the same weights, bit for bit."""
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(
        mine[name].dtype == theirs[name].dtype and torch.equal(mine[name], theirs[name]) for name in mine
    )


def parameters(model: Any) -> tuple[int, int]:
    """The number of a model's parameters, and of those in embeddings and in the head over the vocabulary."""
    embedding = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding)}
    head = model.get_output_embeddings()
    if head is not None and hasattr(head, "weight"):
        embedding[id(head.weight)] = head.weight.numel()
    return sum(p.numel() for p in model.parameters()), sum(embedding.values())
