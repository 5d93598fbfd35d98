"""Reads the configurations of models, without their weights."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from transformers import AutoConfig

from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.loading.adapters import base_name
from fastkd.trainer.loading.names import INIT_KWARGS, expanded, refusal

# Keywords of `from_pretrained` that concern weights; a model that is built from its configuration has none.
_OF_WEIGHTS = (
    "use_safetensors",
    "ignore_mismatched_sizes",
    "key_mapping",
    "device_map",
    "max_memory",
    "variant",
)


def require_name(field: str, name: str | None) -> str:
    """The name of a model; raises a ``ValueError`` if the field is not set."""
    if name is None:
        raise ValueError(f"{field} is not set: give a directory or a hub id")
    return name


def init_kwargs(field: str, args: DistillationConfig) -> dict[str, Any]:
    """The keywords of ``from_pretrained`` that ``model_init_kwargs`` or ``teacher_model_init_kwargs`` gives,
    with dtypes as dtypes.

    Raises:
        ValueError: no mapping, or an unknown dtype.
    """
    name = INIT_KWARGS[field]
    given = getattr(args, name)
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise ValueError(f"{name} must be a mapping, not {given!r}")
    kwargs = dict(given)
    if "torch_dtype" in kwargs:  # the former name
        kwargs.setdefault("dtype", kwargs.pop("torch_dtype"))
    dtype = kwargs.get("dtype")
    if isinstance(dtype, str) and dtype != "auto":
        kwargs["dtype"] = _dtype(name, dtype)
    return kwargs


def _dtype(name: str, given: str) -> torch.dtype:
    found = getattr(torch, given.removeprefix("torch."), None)
    if isinstance(found, torch.dtype) and found.is_floating_point:
        return found
    known = ("float32", "bfloat16", "float16", "float64")
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.3)
    meant = f"; did you mean {near[0]!r}?" if near else f": give auto, {', '.join(known)}"
    raise ValueError(f"{name}: dtype {given!r} is no floating-point dtype of torch{meant}")


def read_config(field: str, name: str | None, args: DistillationConfig, **changes: Any) -> Any:
    """The ``config.json`` of ``model`` or ``teacher``; of the model under it, if it is an adapter.

    Args:
        field: ``model`` or ``teacher``.
        name: directory or hub id.
        args: says whether code that comes with the model may run.
        changes: fields of the configuration to change.

    Raises:
        ValueError: the field is not set, its configuration cannot be read, or has no field that is to change.
    """
    base = base_name(field, require_name(field, name))
    try:
        config, unknown = AutoConfig.from_pretrained(
            expanded(base),
            trust_remote_code=args.trust_remote_code,
            return_unused_kwargs=True,
            **changes,
        )
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise refusal(field, base, error, weights=False) from error
    unknown = [key for key in unknown if key not in (*_OF_WEIGHTS, "trust_remote_code")]
    if unknown:
        raise ValueError(f"{INIT_KWARGS[field]}: the model's config.json has no field {unknown[0]!r}")
    return config


def stored_dtype(config: Any) -> torch.dtype:
    """The dtype in which a pretrained model was saved."""
    found = getattr(config, "dtype", None)
    found = getattr(torch, found, None) if isinstance(found, str) else found
    return found if isinstance(found, torch.dtype) else torch.float32
