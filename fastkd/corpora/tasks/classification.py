"""Sequence classification: sentiment, intent, entailment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForSequenceClassification

from fastkd.corpora.settings import TaskSettings
from fastkd.corpora.tasks.base import IGNORE_INDEX, Batch, Row, Task, pad

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Classification(Task):
    """Reads ``text`` and ``label`` (a number or the name of a class). There is one distribution per text."""

    name = "classification"
    auto_class = AutoModelForSequenceClassification
    layouts = (("text", "label"),)
    writes_text = False

    def encode(
        self, row: Row, layout: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, args: TaskSettings
    ) -> Row | None:
        if not row["text"]:
            return None
        whole = tokenizer(row["text"], verbose=False)["input_ids"]
        ids = tokenizer(row["text"], truncation=True, max_length=args.max_length)["input_ids"]
        label = IGNORE_INDEX if row["label"] is None else self.number(row["label"], args)
        return {"input_ids": ids, "labels": label, "cut": len(ids) < len(whole)}

    def number(self, label: Any, args: TaskSettings) -> int:
        """The class's number.

        Raises:
            ValueError: a name that is not one of ``class_names``.
        """
        if isinstance(label, int):
            return label
        if not args.class_names or str(label) not in args.class_names:
            known = ", ".join(args.class_names or ["none known"])
            raise ValueError(f"the label {label!r} is not one of the classes ({known})")
        return args.class_names.index(str(label))

    def what_was_cut(self, args: TaskSettings) -> str:
        return f"texts are longer than max_length={args.max_length} and were cut"

    def collate(self, rows: Sequence[Row], pad_token_id: int) -> Batch:
        ids = [row["input_ids"] for row in rows]
        return {
            "input_ids": pad(ids, pad_token_id),
            "attention_mask": pad([[1] * len(x) for x in ids], 0),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }

    def model_inputs(self, model: Any, batch: Batch) -> dict[str, Any]:
        """A decoder finds the end of a text by its own padding token, which may not be the batch's."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        own = getattr(model.config.get_text_config(), "pad_token_id", None)
        if own is not None:
            ids = ids.masked_fill(mask == 0, own)
        return {"input_ids": ids, "attention_mask": mask}
