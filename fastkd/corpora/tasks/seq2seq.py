"""Encoder-decoder models: translation, summarisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import AutoModelForSeq2SeqLM

from fastkd.corpora.prompts import text_ids
from fastkd.corpora.settings import TaskSettings
from fastkd.corpora.tasks.base import IGNORE_INDEX, Batch, Row, Task, closed, pad
from fastkd.corpora.tasks.forms import check_values

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Seq2Seq(Task):
    """The encoder reads ``source``, the decoder predicts ``target``; logits at i predict label i."""

    name = "seq2seq"
    auto_class = AutoModelForSeq2SeqLM
    layouts = (("source", "target"), ("prompt", "completion"), ("instruction", "output"))
    beside: ClassVar[dict[str, tuple[str, ...]]] = {"instruction": ("input",)}

    def canonical(
        self, row: Row, layout: tuple[str, ...], tokenizer: PreTrainedTokenizerBase
    ) -> tuple[Row, tuple[str, ...]]:
        more = self.beside.get(layout[0], ())
        check_values(row, (*layout, *more))
        parts = [row.get(name) for name in (layout[0], *more)]
        return {**row, layout[0]: "\n\n".join(part for part in parts if part)}, layout

    def encode_prompt(
        self, row: Row, layout: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, args: TaskSettings
    ) -> Row | None:
        if not row[layout[0]]:
            return None
        ids, cut = self._source(row[layout[0]], tokenizer, args)
        return {"input_ids": ids, "labels": [IGNORE_INDEX], "cut": cut}

    def encode(
        self, row: Row, layout: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, args: TaskSettings
    ) -> Row | None:
        source, target = (row[name] or "" for name in layout)
        if not source or not target:
            return None
        ids, cut = self._source(source, tokenizer, args)
        labels = closed(text_ids(target, tokenizer, is_target=True), tokenizer.eos_token_id)
        cut = cut or len(labels) > args.max_target_length
        return {"input_ids": ids, "labels": labels[: args.max_target_length], "cut": cut}

    def _source(
        self, source: str, tokenizer: PreTrainedTokenizerBase, args: TaskSettings
    ) -> tuple[list[int], bool]:
        """A source's tokens, and whether its end was cut. Its closing token is kept."""
        ids = text_ids(source, tokenizer)
        if len(ids) <= args.max_length:
            return ids, False
        return [*ids[: args.max_length - 1], ids[-1]], True

    def what_was_cut(self, args: TaskSettings) -> str:
        return (
            f"pairs are longer than max_length={args.max_length} (source) or "
            f"max_target_length={args.max_target_length} (target) and were cut"
        )

    def collate(self, rows: Sequence[Row], pad_token_id: int) -> Batch:
        ids = [row["input_ids"] for row in rows]
        return {
            "input_ids": pad(ids, pad_token_id),
            "attention_mask": pad([[1] * len(x) for x in ids], 0),
            "labels": pad([row["labels"] for row in rows], IGNORE_INDEX),
        }

    def model_inputs(self, model: Any, batch: Batch) -> dict[str, Any]:
        """The decoder's input is the labels shifted right by one position, after the model's start token."""
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        return {
            "input_ids": batch["input_ids"],
            "attention_mask": batch["attention_mask"],
            "decoder_input_ids": base.prepare_decoder_input_ids_from_labels(labels=batch["labels"]),
            "use_cache": False,
        }
