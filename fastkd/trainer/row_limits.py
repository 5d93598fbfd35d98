"""Checks before the first step that encoded rows fit the models: lengths, tokens and labels."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from fastkd.corpora.tasks import IGNORE_INDEX, Task
from fastkd.corpora.tasks.encoded import LABELS
from fastkd.trainer.heads import output_width

logger = logging.getLogger(__name__)

# The names that models of `transformers` give to their absolute position embeddings.
_POSITIONS = ("wpe", "position_embeddings", "embed_positions")
_AT_ONCE = 10_000


@dataclass
class Extent:
    """The largest and smallest values in encoded rows.

    Attributes:
        longest: tokens of the longest row without padding; for packed rows, of the longest document.
        longest_target: labels of the longest row, for seq2seq.
        tokens, labels: smallest and largest value; None if there are none. Masked labels do not count.
    """

    longest: int = 0
    longest_target: int = 0
    tokens: tuple[int, int] | None = None
    labels: tuple[int, int] | None = None


def extent(rows: Any, task: Task) -> Extent | None:
    """The extent of all rows of a data set of `datasets` or of a list; None for other data sets, whose rows
    may be made on the fly, and for streams.
    """
    found = Extent()
    parts = _parts(rows)
    if parts is None:
        return None
    for part in parts:
        ids, lengths = part["input_ids"]
        if "attention_mask" in part:
            mask, sizes = part["attention_mask"]
            lengths = _sums(mask != 0, sizes)
        if "position_ids" in part:
            positions = part["position_ids"][0]
            found.longest = max(found.longest, int(positions.max(initial=-1)) + 1)
        else:
            found.longest = max(found.longest, int(lengths.max(initial=0)))
        found.tokens = _wider(found.tokens, ids)
        name = next((name for name in ("labels", *LABELS) if name in part), None)
        if name is not None:
            labels, sizes = part[name]
            if task.name == "seq2seq":
                sizes = _sums(labels != IGNORE_INDEX, sizes)
                found.longest_target = max(found.longest_target, int(sizes.max(initial=0)))
            if np.issubdtype(labels.dtype, np.integer):
                found.labels = _wider(found.labels, labels[labels != IGNORE_INDEX])
    return found


def check_rows(rows: Any, what: str, task: Task, models: dict[str, Any], tokenizer: Any = None) -> None:
    """Raise a ``ValueError`` if rows do not fit a model.

    Args:
        rows: encoded rows; data sets that :func:`extent` does not read are not checked.
        what: names the rows in the message.
        models: by ``student`` and ``teacher``.
    """
    found = extent(rows, task)
    if found is None:
        return
    for side, model in models.items():
        for problem in problems(found, side, model, task, tokenizer):
            raise ValueError(f"{what} {problem}")
        trained = trained_positions(model.config)
        if trained is not None and found.longest > trained:
            logger.warning(
                "%s has a row of %d tokens, and the %s was trained on %d at most: max_length: %d cuts it",
                *(what, found.longest, side, trained, trained),
            )


def problems(found: Extent, side: str, model: Any, task: Task, tokenizer: Any = None) -> Iterator[str]:
    """Sentences, without their subject, that say why rows do not fit a model, whose weights are not read.

    Args:
        found: of the rows.
        side: ``student`` or ``teacher``.
    """
    source, target = windows(model)
    if source is not None and found.longest > source:
        yield (
            f"has a row of {found.longest:,} tokens and the {side} {source:,} positions: "
            f"set max_length: {source}"
        )
    if target is not None and found.longest_target > target:
        yield (
            f"has a target of {found.longest_target:,} tokens and the {side} {target:,} positions: "
            f"set max_target_length: {target}"
        )
    known = _embedded(model)
    if known is not None and found.tokens is not None and not 0 <= found.tokens[0] <= found.tokens[1] < known:
        token = found.tokens[0] if found.tokens[0] < 0 else found.tokens[1]
        yield (
            f"has the token {token}{_named(token, tokenizer)} and the {side} has embeddings for {known:,}: "
            "the tokenizer is not the model's, or it was not resized when tokens were added"
        )
    if found.labels is None or side != "student":
        return
    low, high = found.labels
    if task.name == "classification":
        if _picks_a_class(model.config) and high >= model.config.num_labels:
            yield (
                f"has the class number {high} and the {side} {model.config.num_labels} classes, from 0: "
                "number the classes from 0, or choose a model with as many"
            )
    elif not 0 <= low <= high < output_width(model):
        yield (
            f"has the label {low if low < 0 else high} and the {side} {output_width(model):,} tokens: mask "
            f"positions without a label with {IGNORE_INDEX}"
        )


def windows(model: Any) -> tuple[int | None, int | None]:
    """The numbers of absolute positions that a model has embeddings for: of its input, and of the decoder of
    an encoder-decoder. None where positions are relative, rotary or computed: those only lose quality.
    """
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not plain.config.is_encoder_decoder:
        return _positions(plain), None
    return _positions(plain.get_encoder()), _positions(plain.get_decoder())


def trained_positions(config: Any) -> int | None:
    """The longest sequence, in tokens, that a model was made for, as its config says; None if it says
    nothing.
    """
    text = config.get_text_config(decoder=True)
    for name in ("max_position_embeddings", "n_positions", "max_target_positions"):
        limit = getattr(text, name, None)
        if isinstance(limit, int) and limit > 0:
            # RoBERTa numbers positions from pad_token_id + 1; the ones below hold no tokens.
            roberta = text.model_type in ("roberta", "xlm-roberta", "camembert")
            return limit - (text.pad_token_id + 1 if roberta else 0)
    return None


def _picks_a_class(config: Any) -> bool:
    return (
        getattr(config, "problem_type", None) in (None, "single_label_classification")
        and config.num_labels > 1
    )


def _positions(model: nn.Module) -> int | None:
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in _POSITIONS:
            # BART and OPT leave the first two rows unused, RoBERTa those up to its padding token.
            unused = getattr(module, "offset", None)
            if unused is None:
                unused = 0 if module.padding_idx is None else module.padding_idx + 1
            found.append(module.num_embeddings - unused)
    return min(found, default=None)


def _embedded(model: Any) -> int | None:
    embeddings = model.get_input_embeddings()
    return getattr(embeddings, "num_embeddings", None)


def _named(token: int, tokenizer: Any) -> str:
    name = None if tokenizer is None or token < 0 else tokenizer.convert_ids_to_tokens(token)
    return "" if name is None else f" ({name!r})"


def _parts(rows: Any) -> Iterator[dict[str, tuple[np.ndarray, np.ndarray]]] | None:
    """Some rows at a time: the values of each field, row after row, and the number of values of each row."""
    fields = ("input_ids", "attention_mask", "position_ids", "labels", *LABELS)
    if hasattr(rows, "with_format") and hasattr(rows, "__len__"):
        return _arrow_parts(rows, [name for name in fields if name in rows.column_names])
    if isinstance(rows, (list, tuple)):
        return _list_parts(rows, fields)
    return None


def _arrow_parts(rows: Any, fields: list[str]) -> Iterator[dict[str, tuple[np.ndarray, np.ndarray]]]:
    import pyarrow
    import pyarrow.compute

    for table in rows.with_format("arrow", columns=fields).iter(_AT_ONCE):
        part = {}
        for name in fields:
            column = table[name].combine_chunks()
            if isinstance(column, pyarrow.ChunkedArray):
                column = pyarrow.concat_arrays(column.chunks)
            if pyarrow.types.is_list(column.type) or pyarrow.types.is_large_list(column.type):
                sizes = pyarrow.compute.list_value_length(column).fill_null(0).to_numpy()
                part[name] = column.flatten().to_numpy(zero_copy_only=False), sizes
            else:
                values = column.drop_null().to_numpy(zero_copy_only=False)
                part[name] = values, np.ones(len(values), np.int64)
        yield part


def _list_parts(rows: Any, fields: tuple[str, ...]) -> Iterator[dict[str, tuple[np.ndarray, np.ndarray]]]:
    for row in rows:
        values = {name: np.asarray(row[name]) for name in fields if name in row}
        yield {name: (value.ravel(), np.array([value.size])) for name, value in values.items()}


def _sums(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The sum of each row's values."""
    total = np.r_[0, np.cumsum(values)]
    ends = np.cumsum(sizes)
    return total[ends] - total[ends - sizes]


def _wider(found: tuple[int, int] | None, values: np.ndarray) -> tuple[int, int] | None:
    if not len(values):
        return found
    low, high = int(values.min()), int(values.max())
    return (low, high) if found is None else (min(found[0], low), max(found[1], high))
