"""Encoder-decoder models: translation, summarisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import AutoModelForSeq2SeqLM

from fastkd.corpora.prompts import text_ids
from fastkd.corpora.settings import TaskSettings
from fastkd.corpora.tasks.base import IGNORE_INDEX, Batch, Row, Task, closed, pad

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Seq2Seq(Task):
    """The encoder reads ``source``, the decoder predicts ``target``; logits at i predict label i."""

    name = "seq2seq"
    auto_class = AutoModelForSeq2SeqLM
    layouts = (("source", "target"), ("prompt", "completion"))

    def encode(
        self, row: Row, layout: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, args: TaskSettings
    ) -> Row | None:
        source, target = (row[name] or "" for name in layout)
        if not source or not target:
            return None
        ids = text_ids(source, tokenizer)
        labels = closed(text_ids(target, tokenizer, is_target=True), tokenizer.eos_token_id)
        cut = len(ids) > args.max_length or len(labels) > args.max_target_length
        if len(ids) > args.max_length:  # cut the end of the source, but keep its closing token
            ids = [*ids[: args.max_length - 1], ids[-1]]
        return {"input_ids": ids, "labels": labels[: args.max_target_length], "cut": cut}

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
