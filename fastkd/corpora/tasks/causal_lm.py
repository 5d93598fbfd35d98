"""Decoder-only language models, trained on texts, on prompts with completions, or on conversations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

from fastkd.corpora.settings import TaskSettings
from fastkd.corpora.tasks.base import IGNORE_INDEX, Batch, Row, Task, closed, pad
from fastkd.corpora.tasks.forms import check_values, instruction, is_messages, joined

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

# Number of documents that are packed together; the last piece of each group may be short.
PACKED_AT_ONCE = 10_000


class CausalLM(Task):
    """Trains on every token of ``text``; in the other layouts on the completion (``target``, ``output``) or
    the assistant's turns alone. A prompt and a completion may be lists of messages.
    """

    name = "causal_lm"
    auto_class = AutoModelForCausalLM
    # A `text` beside other columns is mostly the same row as it was rendered for somebody else's model.
    layouts = (
        ("prompt", "completion"),
        ("messages",),
        ("source", "target"),
        ("instruction", "output"),
        ("text",),
    )
    beside: ClassVar[dict[str, tuple[str, ...]]] = {"instruction": ("input",)}
    shifts_labels = True

    def canonical(
        self, row: Row, layout: tuple[str, ...], tokenizer: PreTrainedTokenizerBase
    ) -> tuple[Row, tuple[str, ...]]:
        check_values(row, (*layout, *self.beside.get(layout[0], ())), messages_in=("prompt", "completion"))
        if layout[0] == "instruction":
            row = instruction(row, bool(tokenizer.chat_template))
            layout = ("prompt", "completion")[: len(layout)]
        prompt, answer = row[layout[0]], row[layout[-1]]
        if len(layout) > 1 and prompt and answer and (is_messages(prompt) or is_messages(answer)):
            return {"messages": joined(prompt, answer)}, ("messages",)
        return row, layout

    def encode_prompt(
        self, row: Row, layout: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, args: TaskSettings
    ) -> Row | None:
        prompt = row[layout[0]]
        answered = layout == ("messages",) and any(message["role"] == "assistant" for message in prompt or [])
        if layout == ("text",) or answered:
            return self.encode(row, layout, tokenizer, args)
        if not prompt:
            return None
        ids = (
            prompt_ids(prompt, tokenizer)
            if isinstance(prompt, str)
            else templated(prompt, tokenizer, add_generation_prompt=True)
        )
        kept = ids[-args.max_length :]
        return {"input_ids": kept, "labels": [IGNORE_INDEX] * len(kept), "cut": len(kept) < len(ids)}

    def encode(
        self, row: Row, layout: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, args: TaskSettings
    ) -> Row | None:
        if layout == ("messages",):
            ids, said = _conversation(row["messages"] or [], tokenizer)
        elif layout == ("text",):
            if not row["text"]:
                return None
            # `verbose=False`: no warning about texts longer than the model's window, which are cut below.
            ids = closed(tokenizer(row["text"], verbose=False)["input_ids"], tokenizer.eos_token_id)
            said = [True] * len(ids)
        else:
            prompt, completion = (row[name] or "" for name in layout)
            if not completion:
                return None
            before = prompt_ids(prompt, tokenizer)
            after = closed(
                tokenizer(completion, add_special_tokens=False, verbose=False)["input_ids"],
                tokenizer.eos_token_id,
            )
            ids, said = before + after, [False] * len(before) + [True] * len(after)
        if args.packing:  # the text is cut into pieces later, so nothing is lost
            cut = False
        else:
            ids, said, cut = _fit(ids, said, args.max_length, whole=layout == ("text",))
        labels = [token if mine else IGNORE_INDEX for token, mine in zip(ids, said, strict=True)]
        if len(ids) < 2 or not any(said[1:]):  # nothing that could be predicted
            return None
        return {"input_ids": ids, "labels": labels, "cut": cut}

    def tokenize(
        self,
        rows: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        args: TaskSettings,
        field: str,
        needs_answer: bool = True,
    ) -> Dataset:
        found = super().tokenize(rows, tokenizer, args, field, needs_answer)
        return _packed(found, args, field) if args.packing else found

    def what_was_cut(self, args: TaskSettings) -> str:
        return f"texts are longer than max_length={args.max_length} and were cut; packing: true loses nothing"

    def collate(self, rows: Sequence[Row], pad_token_id: int) -> Batch:
        """Padding is masked in the labels by position. So a real end-of-text token still counts, even if the
        same token is used for padding.

        Packed rows carry ``position_ids`` that restart at 0 with each document, and no attention mask: from
        this, models of `transformers` tell documents apart. The padding of a packed row is a document of its
        own.
        """
        labels = pad([row.get("labels", row["input_ids"]) for row in rows], IGNORE_INDEX)
        batch: Batch = {"input_ids": pad([row["input_ids"] for row in rows], pad_token_id), "labels": labels}
        lengths = [len(row["input_ids"]) for row in rows]
        if "position_ids" in rows[0]:
            longest = max(lengths)
            batch["position_ids"] = pad(
                [[*row["position_ids"], *range(longest - n)] for row, n in zip(rows, lengths, strict=True)], 0
            )
        else:
            batch["attention_mask"] = pad([[1] * n for n in lengths], 0)
        return batch

    def model_inputs(self, model: Any, batch: Batch) -> dict[str, Any]:
        names = ("input_ids", "attention_mask", "position_ids")
        return {**{name: batch[name] for name in names if batch.get(name) is not None}, "use_cache": False}

    def targets(self, labels: Tensor) -> Tensor:
        """Each position holds the token after it, the last one none. Labels are shifted nowhere else."""
        return F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)


def prompt_ids(prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A prompt's tokens, with the special tokens that open a text but without those that close it."""
    ids = list(tokenizer(prompt, verbose=False)["input_ids"])
    while (
        ids
        and ids[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id)
        and not prompt.endswith(str(tokenizer.eos_token))
    ):
        ids.pop()
    return ids


def _conversation(
    messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[bool]]:
    """All turns up to the assistant's last, in the tokenizer's chat template, and which tokens are the
    assistant's. A turn with ``weight: 0`` is read and not trained on.

    Chat templates of `transformers` mark the assistant's tokens only if their authors added markers. So this
    function takes the tokens that each of the assistant's turns adds to the conversation before it.
    """
    ids: list[int] = []
    said: list[bool] = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        opened = templated(messages[:i], tokenizer, add_generation_prompt=True)
        whole = templated(messages[: i + 1], tokenizer, add_generation_prompt=False)
        if whole[: len(opened)] != opened or opened[: len(ids)] != ids:
            raise ValueError(
                "this tokenizer's chat template rewrites earlier turns, so the assistant's tokens cannot be "
                "told apart: give prompt and completion columns instead of messages"
            )
        trained = message.get("weight") != 0
        said += [False] * (len(opened) - len(ids)) + [trained] * (len(whole) - len(opened))
        ids = whole
    return ids, said


def templated(
    messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, add_generation_prompt: bool
) -> list[int]:
    """A conversation's tokens in the tokenizer's chat template, with or without the opening of an answer."""
    made: Any = tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=add_generation_prompt, return_dict=True
    )
    return list(made["input_ids"])


def _fit(ids: list[int], said: list[bool], longest: int, whole: bool) -> tuple[list[int], list[bool], bool]:
    """At most ``longest`` tokens: the start of a ``whole`` text, or a prompt's end and an answer's start."""
    if len(ids) <= longest:
        return ids, said, False
    if whole:
        return ids[:longest], said[:longest], True
    first = said.index(True)
    # Cut the answer so that at least one token of the prompt remains to predict it from.
    end = min(len(ids), first + longest - min(1, first))
    begin = max(0, end - longest)
    return ids[begin:end], said[begin:end], True


def _packed(rows: Dataset, args: TaskSettings, field: str) -> Dataset:
    """Joins documents and cuts them into pieces of ``max_length``; positions restart with each document.

    The first token of a document is not a label, since the token before it belongs to another document.
    """

    def pack(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        streams: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": []}
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            streams["input_ids"] += ids
            streams["labels"] += [IGNORE_INDEX, *labels[1:]]
            streams["position_ids"] += range(len(ids))
        size, total = args.max_length, len(streams["input_ids"])
        made: dict[str, list[list[int]]] = {name: [] for name in streams}
        for start in range(0, total, size):
            piece = {name: stream[start : start + size] for name, stream in streams.items()}
            if all(label == IGNORE_INDEX for label in piece["labels"][1:]):
                continue  # a single token, or only prompts
            piece["position_ids"] = _restarted(piece["position_ids"])
            for name, values in piece.items():
                made[name].append(values)
        return made

    if not hasattr(rows, "__len__"):
        return rows.map(pack, batched=True, batch_size=PACKED_AT_ONCE)
    with args.main_process_first(desc=f"packing {field}"):
        return rows.map(pack, batched=True, batch_size=PACKED_AT_ONCE, desc=f"packing {field}")


def _restarted(positions: list[int]) -> list[int]:
    """Positions that count from the piece's start if the piece begins in the middle of a document."""
    moved, offset = [], positions[0]
    for position in positions:
        if position == 0:
            offset = 0
        moved.append(position - offset)
    return moved
