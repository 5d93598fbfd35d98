"""The student's weights as a saved checkpoint would hold them, for an engine that reads such a checkpoint."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion


def plain_model(student: Any) -> Any:
    """The model inside an adapter of `peft`, or the student itself."""
    return student.get_base_model() if hasattr(student, "get_base_model") else student


@torch.no_grad()
def checkpoint_weights(student: Any) -> Iterator[tuple[str, Tensor]]:
    """The names and tensors of the student as in a checkpoint, with its adapter merged.

    A tied weight comes under each of its names, since an engine may pack it once for each of its uses. The
    tensors come layer by layer, and only those that an adapter changes are copies. The student's own
    weights stay as they are, to the bit: subtracting a merged adapter again would round them.

    Raises:
        ValueError: an adapter that cannot be merged.
    """
    model = plain_model(student)
    for _, layer in groupby(_merged(model), key=lambda pair: _layer_of(pair[0])):
        yield from revert_weight_conversion(model, dict(layer)).items()


def check_mergeable(student: Any) -> None:
    """Raise a ``ValueError`` if an adapter cannot be merged into the weights that it changes."""
    model = plain_model(student)
    tied = {name.rpartition(".")[0] for pair in _tied(model).items() for name in pair}
    for path, module in model.named_modules():
        if not _is_tuner(module) and not _is_trained_copy(module):
            if _of_peft(module, "AuxiliaryTrainingWrapper"):
                raise ValueError(
                    f"{path} has an adapter ({type(module).__name__}) that cannot be merged into a weight, "
                    "which vLLM needs: set sampler: transformers"
                )
            continue
        if path in tied:
            raise ValueError(
                f"{path} has an adapter and shares its weight with another layer, so a merged weight would "
                "change both: leave it out of the adapter, or set sampler: transformers"
            )


def _layer_of(name: str) -> str:
    """The part of a name up to the number of its layer; empty outside of the layers."""
    found = re.match(r".*?\.\d+\.", name)
    return found[0] if found else ""


def _merged(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The model's weights under the names that they have without an adapter."""
    adapted = {
        path: module
        for path, module in model.named_modules()
        if path and (_is_tuner(module) or _is_trained_copy(module))
    }
    done: set[str] = set()
    for name, value in model.state_dict().items():
        path = next((path for path in adapted if name.startswith(f"{path}.")), None)
        if path is None:
            yield name, value
        elif path not in done:
            done.add(path)
            for part, tensor in _adapted(adapted[path]).items():
                yield f"{path}.{part}", tensor


def _adapted(module: Any) -> dict[str, Tensor]:
    """The weights of one layer with its adapter."""
    if _is_trained_copy(module):
        return dict(module.modules_to_save[module.active_adapters[0]].state_dict())
    layer = module.get_base_layer()
    if module.merged:
        return dict(layer.state_dict())
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    module.merge()
    merged = {name: value.clone() for name, value in layer.state_dict().items()}
    module.unmerge()
    for name, value in layer.state_dict().items():
        value.copy_(before[name])
    return merged


def _tied(model: Any) -> dict[str, str]:
    """The names that only repeat another weight, each with that weight's name."""
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def _is_tuner(module: nn.Module) -> bool:
    return _of_peft(module, "BaseTunerLayer") and hasattr(module, "get_base_layer")


def _is_trained_copy(module: nn.Module) -> bool:
    return _of_peft(module, "ModulesToSaveWrapper")


def _of_peft(module: nn.Module, name: str) -> bool:
    """Whether a module is of this class of `peft`. Without an adapter, `peft` need not be installed."""
    for place in ("peft.tuners.tuners_utils", "peft.utils.other"):
        kind = getattr(sys.modules.get(place), name, None)
        if kind is not None and isinstance(module, kind):
            return True
    return False
