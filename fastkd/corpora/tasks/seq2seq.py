"""Encoder-decoder models: translation, summarisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor
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
        labels = _ended(text_ids(target, tokenizer, is_target=True), tokenizer.eos_token_id)
        cut = cut or len(labels) > args.max_target_length
        return {"input_ids": ids, "labels": labels[: args.max_target_length], "cut": cut}

    def _source(
        self, source: str, tokenizer: PreTrainedTokenizerBase, args: TaskSettings
    ) -> tuple[list[int], bool]:
        """A source's tokens, and whether its end was cut."""
        ids = text_ids(source, tokenizer)
        return fitted_source(ids, args.max_length, tokenizer), len(ids) > args.max_length

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
        return {
            "input_ids": batch["input_ids"],
            "attention_mask": batch["attention_mask"],
            "decoder_input_ids": decoder_inputs(model, batch["labels"]),
            "use_cache": False,
        }


def decoder_inputs(model: Any, labels: Tensor) -> Tensor:
    """The labels shifted right by one position, after the model's start token.

    The models' own methods are used only where the start token is not known: M2M100 and Blenderbot have none,
    and that of mBART moves the last label to the front, which is wrong for a label that was cut.

    Raises:
        ValueError: a model without a start token.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    start = getattr(base.config, "decoder_start_token_id", None)
    if start is None:
        if not hasattr(base, "prepare_decoder_input_ids_from_labels"):
            raise ValueError(
                f"{type(base).__name__} has no decoder_start_token_id: set it in the model's config.json"
            )
        return base.prepare_decoder_input_ids_from_labels(labels=labels)
    shifted = labels.new_full(labels.shape, start)
    shifted[:, 1:] = labels[:, :-1]
    padding = getattr(base.config, "pad_token_id", None)
    return shifted.masked_fill(shifted == IGNORE_INDEX, start if padding is None else padding)


def fitted_source(ids: list[int], length: int, tokenizer: Any) -> list[int]:
    """The source, cut to ``length`` tokens at its end but for the special tokens that close it."""
    if len(ids) <= length:
        return ids
    specials = set(tokenizer.all_special_ids)
    closing = 0
    while closing < length - 1 and ids[-1 - closing] in specials:
        closing += 1
    return [*ids[: length - closing], *ids[len(ids) - closing :]]


def _ended(ids: list[int], end: int | None) -> list[int]:
    """The target with its end, after which mBART puts the language."""
    return ids if end in ids[-2:] else closed(ids, end)
