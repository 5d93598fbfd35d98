"""Loads the weights of a model, and refuses a model of which any would be drawn at random unnoticed."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel

from fastkd.corpora.listing import listed
from fastkd.trainer.loading.names import INIT_KWARGS, expanded, reason, refusal

logger = logging.getLogger(__name__)

# Models whose missing head has been mentioned: a run loads its student several times, and says it once.
_said: set[tuple[str, str]] = set()

# Errors that `from_pretrained` raises about its arguments, a model's files, or the memory for them.
ERRORS = (
    OSError,
    ValueError,
    TypeError,
    RuntimeError,
    AttributeError,
    KeyError,
    ImportError,
    SafetensorError,
)


def load_weights(
    field: str, name: str, auto: Any, kwargs: Mapping[str, Any], fresh_head: bool = False
) -> PreTrainedModel:
    """A pretrained model with all of its weights.

    Args:
        field: ``model`` or ``teacher``, for messages.
        name: directory or hub id.
        auto: the class of ``transformers`` that loads it.
        kwargs: keywords of ``from_pretrained``. With ``ignore_mismatched_sizes``, weights of another size
            than the configuration states are drawn at random, as the caller wishes.
        fresh_head: whether the head of a classifier may be missing, and is then drawn at random.

    Raises:
        ValueError: a model that cannot be read, weights that are missing or have another size, or an unknown
            keyword. The message names the field and the weights.
    """
    options = dict(kwargs)
    resizes = options.pop("ignore_mismatched_sizes", False)
    try:
        # Sizes are compared below, since the error of `transformers` names no weight.
        with _without_report():
            model, info = auto.from_pretrained(
                expanded(name), output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    except ERRORS as error:
        raise explained(field, name, error) from error
    mismatched = sorted(info["mismatched_keys"])
    if mismatched and not resizes:
        raise ValueError(_other_sizes(field, name, mismatched))
    missing = sorted(info["missing_keys"])
    fresh = [key for key in missing if fresh_head and _of_head(model, key)]
    unexpected = sorted(info["unexpected_keys"])
    if lost := [key for key in missing if key not in set(fresh)]:
        raise ValueError(_lost(field, name, model, lost, unexpected))
    if fresh and (field, (place := os.path.abspath(expanded(name)))) not in _said:
        _said.add((field, place))
        logger.warning("%s %r has no trained classification head: %s drawn anew", field, name, listed(fresh))
    # Heads for another task are left out as a matter of course.
    if spare := [key for key in unexpected if not _of_head(model, key)]:
        logger.warning(
            *("%s %r: %d weights have no place in %s and are left out: %s", field, name),
            *(len(spare), type(model).__name__, listed(spare)),
        )
    return model


def lost(model: Any, missing: Sequence[str]) -> list[str]:
    """The parameters among ``missing`` that have no other name under which they were loaded."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    loaded = {id(parameter) for name, parameter in parameters.items() if name not in set(missing)}
    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    return [
        name
        for name in missing
        if name in parameters and id(parameters[name]) not in loaded and name not in ignored
    ]


def explained(field: str, name: str, error: Exception) -> ValueError:
    """The error of a failed ``from_pretrained``, with the field and a way to mend it."""
    if isinstance(error, ImportError):
        return ValueError(f"{field} {name!r} needs a package that is missing: {reason(error)}")
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if unknown is not None:
        keyword = unknown.group(1)
        mend = (
            f"write quantization_config: {{{keyword}: true}}"
            if keyword in ("load_in_4bit", "load_in_8bit")
            else "give keywords of from_pretrained, or fields of the model's config.json"
        )
        return ValueError(f"{INIT_KWARGS[field]}: the model has no setting {keyword!r}: {mend}")
    return refusal(field, name, error)


@contextlib.contextmanager
def _without_report() -> Iterator[None]:
    """Hides the table of weights that `transformers` logs: it also lists those that are rightly missing."""
    source = logging.getLogger("transformers.modeling_utils")

    def keeps(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    source.addFilter(keeps)
    try:
        yield
    finally:
        source.removeFilter(keeps)


def _of_head(model: Any, key: str) -> bool:
    """Whether a weight belongs to the head and not to the model under it.

    A pooler is part of the head: checkpoints of language models have none.
    """
    prefix = model.base_model_prefix
    return bool(prefix) and (not key.startswith(f"{prefix}.") or ".pooler." in key)


def _lost(field: str, name: str, model: Any, lost: list[str], unexpected: list[str]) -> str:
    total = len(model.state_dict())
    verb = "is" if len(lost) == 1 else "are"
    if unexpected:
        mend = (
            f"; the files have {listed(unexpected)} instead: rename them, or give key_mapping in "
            f"{INIT_KWARGS[field]}"
        )
    elif all(_of_head(model, key) for key in lost):
        mend = ": train the model for this task first (fastkd train)"
    else:
        mend = ": save or download the whole model again"
    return (
        f"{field} {name!r}: {len(lost):,} of the {total:,} weights of {type(model).__name__} {verb} missing "
        f"from its files and would be random ({listed(lost)}){mend}"
    )


def _other_sizes(field: str, name: str, mismatched: list[tuple[str, Any, Any]]) -> str:
    key, stored, wanted = mismatched[0]
    more = f" (and {len(mismatched) - 1:,} more weights differ)" if len(mismatched) > 1 else ""
    return (
        f"{field} {name!r}: {key} has the shape {tuple(stored)} in its files and {tuple(wanted)} by its "
        f"config.json and the settings{more}: correct them (vocab_size, class_names), or set "
        f"{INIT_KWARGS[field]}: {{ignore_mismatched_sizes: true}} to draw these weights anew"
    )
