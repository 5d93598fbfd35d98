"""Classification of texts and of pairs of texts: sentiment, intent, entailment, topics, similarity."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from fastkd.corpora.known_columns import columns_of, proposal
from fastkd.corpora.labels import (
    COLUMNS,
    by_name,
    encode_label,
    feature_names,
    is_unlabelled,
    label_column,
)
from fastkd.corpora.pairs import PAIRS
from fastkd.corpora.prompts import text_ids
from fastkd.corpora.settings import TaskSettings
from fastkd.corpora.tasks.base import Batch, Row, Task, pad
from fastkd.corpora.unlabelled import missing_labels

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


class Classification(Task):
    """Reads ``text``, perhaps ``text_pair``, and ``label``, as :mod:`fastkd.corpora.labels` describes it.

    There is one distribution per text, or one per text and label of a multi-label model. A text without a
    label is learned from a teacher alone.
    """

    name = "classification"
    auto_class = AutoModelForSequenceClassification
    layouts = (
        ("text", "label"),
        ("text", "text_pair", "label"),
        *((*pair, label) for pair in PAIRS for label in COLUMNS),
        *(("text", label) for label in COLUMNS),
        *PAIRS,
        ("text",),
    )
    writes_text = False

    def layout_of(self, columns: Sequence[str], field: str, needs_answer: bool = True) -> tuple[str, ...]:
        """The longest layout whose columns all exist.

        Raises:
            ValueError: no layout has all its columns.
        """
        fitting = [layout for layout in self.layouts if set(layout) <= set(columns)]
        if fitting:
            return max(fitting, key=len)
        raise ValueError(
            f"{field} has the columns {', '.join(columns)}, but {self.name} reads text+label or "
            "text+text_pair+label: name them with column_mapping, for example "
            f"{proposal(columns, self.layouts)}"
        )

    def prepared(self, rows: Dataset) -> Dataset:
        """The rows with class numbers replaced by the names that the data set's features have for them, since
        a model may number the same classes in another order.
        """
        column = label_column(columns_of(rows))
        feature: Any = None if column is None else (rows.features or {}).get(column)
        names = feature_names(feature)
        if column is None or names is None:
            return rows
        from datasets import Value

        text: Any = Value("string")
        features: Any = rows.features.copy()
        features[column] = text if feature is getattr(feature, "feature", feature) else type(feature)(text)

        def named(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            return {column: [by_name(label, names) for label in batch[column]]}

        more: dict[str, Any] = {"desc": "naming classes"} if hasattr(rows, "__len__") else {}
        return rows.map(named, batched=True, features=features, **more)

    def further_fields(self, layout: tuple[str, ...]) -> tuple[str, ...]:
        return ("token_type_ids",) if len(_texts(layout)) > 1 else ()

    def encode(
        self, row: Row, layout: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, args: TaskSettings
    ) -> Row | None:
        texts = [row[name] for name in _texts(layout)]
        if not all(texts):
            return None
        if len(texts) == 1:
            whole = text_ids(texts[0], tokenizer)
            cut = len(whole) > args.max_length
            ids = text_ids(texts[0], tokenizer, max_length=args.max_length) if cut else whole
            found = {"input_ids": ids}
        else:
            whole = tokenizer(*texts, verbose=False)["input_ids"]
            made = tokenizer(*texts, truncation=True, max_length=args.max_length, return_token_type_ids=True)
            found = {name: made[name] for name in ("input_ids", "token_type_ids")}
        label = encode_label(row.get(label_column(layout) or ""), args)
        return {**found, "labels": label, "cut": len(found["input_ids"]) < len(whole)}

    def check_encoded(self, rows: Dataset, args: TaskSettings, field: str, columns: Sequence[str]) -> None:
        """Raise a ``ValueError`` if the loss needs labels that the rows do not have."""
        missing = sum(map(is_unlabelled, rows["labels"]))
        known = len(rows) - missing
        if (sentence := missing_labels(known, missing, args, field, columns)) is not None:
            raise ValueError(sentence)

    def why_left_out(self, layout: tuple[str, ...]) -> str:
        return super().why_left_out(_texts(layout))

    def what_was_cut(self, args: TaskSettings) -> str:
        return f"texts are longer than max_length={args.max_length} and were cut"

    def collate(self, rows: Sequence[Row], pad_token_id: int) -> Batch:
        ids = [row["input_ids"] for row in rows]
        made = {
            "input_ids": pad(ids, pad_token_id),
            "attention_mask": pad([[1] * len(x) for x in ids], 0),
            "labels": _tensor([row[label_column(row) or "labels"] for row in rows]),
        }
        if all("token_type_ids" in row for row in rows):
            made["token_type_ids"] = pad([row["token_type_ids"] for row in rows], 0)
        return made

    def model_inputs(self, model: Any, batch: Batch) -> dict[str, Any]:
        """A decoder finds the end of a text by its own padding token, which may not be the batch's."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        own = getattr(model.config.get_text_config(), "pad_token_id", None)
        if own is not None:
            ids = ids.masked_fill(mask == 0, own)
        inputs = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in batch and _reads_types(model):
            inputs["token_type_ids"] = batch["token_type_ids"]
        return inputs


def _texts(layout: tuple[str, ...]) -> tuple[str, ...]:
    """The columns of a layout that hold texts."""
    return tuple(name for name in layout if name not in COLUMNS)


def _tensor(labels: list[Any]) -> Tensor:
    """Class numbers and vectors of 0 and 1 as int64, numbers to predict as float32."""
    made = torch.as_tensor(labels)
    return made.float() if made.is_floating_point() else made.long()


def _reads_types(model: Any) -> bool:
    """Whether a model tells the first text of a pair from the second by ``token_type_ids``.

    Some models accept them and have a single type (RoBERTa) or read them as words (GPT-2).
    """
    base = getattr(model, "get_base_model", lambda: model)()
    many = (getattr(base.config, "type_vocab_size", None) or 0) > 1 or base.config.model_type == "xlnet"
    return many and "token_type_ids" in _parameters(type(base))  # type: ignore[arg-type]


@functools.lru_cache
def _parameters(kind: Any) -> frozenset[str]:
    return frozenset(inspect.signature(kind.forward).parameters)
