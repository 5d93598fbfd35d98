"""Decoder-only language models, trained on texts, on prompts with completions, or on conversations."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

from fastkd.corpora.conversations import BESIDE, conversation
from fastkd.corpora.prompts import pair_ids, prompt_ids, text_ids
from fastkd.corpora.settings import TaskSettings
from fastkd.corpora.tasks.base import IGNORE_INDEX, Batch, Row, Task, closed, pad
from fastkd.corpora.tasks.forms import TOKENS, WITHOUT_PROMPT, check_values, instruction, is_messages, joined
from fastkd.corpora.tasks.given_tokens import segments
from fastkd.corpora.turns import pieces, prompt_tokens

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Number of documents that are packed together; the last piece of each group may be short.
PACKED_AT_ONCE = 10_000


class CausalLM(Task):
    """Trains on every token of ``text``, and on those of ``input_ids`` that ``labels`` does not mask; in the
    other layouts on the completion (``target``, ``output``) or the assistant's answers alone. A prompt and a
    completion may be lists of messages.

    Besides the columns of every task, encoded rows have ``prompt_cut``, ``piece``, which numbers the rows of
    one conversation from its last one, and ``rewritten``, the number of its answers that are not in that row.
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
        TOKENS,
    )
    beside: ClassVar[dict[str, tuple[str, ...]]] = {
        "input_ids": ("labels", "attention_mask"),
        "instruction": ("input",),
        "messages": BESIDE,
        "prompt": BESIDE,
    }
    remarks = ("cut", "prompt_cut", "piece", "rewritten")
    shifts_labels = True

    def canonical(
        self, row: Row, layout: tuple[str, ...], tokenizer: PreTrainedTokenizerBase
    ) -> tuple[Row, tuple[str, ...]]:
        if layout == TOKENS:
            return row, layout
        texts = (*layout, "input") if layout[0] == "instruction" else layout
        check_values(row, texts, messages_in=("prompt", "completion"))
        if layout[0] == "instruction":
            row = instruction(row, bool(tokenizer.chat_template))
            layout = ("prompt", "completion")[: len(layout)]
        prompt, answer = row[layout[0]], row[layout[-1]]
        if len(layout) > 1 and prompt and answer and (is_messages(prompt) or is_messages(answer)):
            return {**row, "messages": joined(prompt, answer)}, ("messages",)
        return row, layout

    def encode_prompt(
        self, row: Row, layout: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, args: TaskSettings
    ) -> Row | None:
        prompt = row[layout[0]]
        if layout in WITHOUT_PROMPT:
            return self.encode(row, layout, tokenizer, args)
        if isinstance(prompt, str):
            ids = prompt_ids(prompt, tokenizer) if prompt else []
        else:
            chat = conversation({**row, "messages": prompt}, tokenizer, args)
            if layout == ("messages",) and chat.answers():
                return self.encode(row, layout, tokenizer, args)
            ids = prompt_tokens(chat) if chat.messages else []
        if not ids:
            return None
        kept, cut = ids[-args.max_length :], len(ids) > args.max_length
        return {"input_ids": kept, "labels": [IGNORE_INDEX] * len(kept), "cut": False, "prompt_cut": cut}

    def encode(
        self, row: Row, layout: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, args: TaskSettings
    ) -> Row | None:
        """As :meth:`encode_all`; of several rows, the last one."""
        made = self.encode_all(row, layout, tokenizer, args)
        return made[-1] if made else None

    def encode_all(
        self, row: Row, layout: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, args: TaskSettings
    ) -> list[Row]:
        if layout == ("messages",):
            chat = conversation(row, tokenizer, args)
            found = pieces(chat, last_only=args.rewritten_turns == "last")
            parts = [(piece.ids, piece.said) for piece in found]
            rewritten = len(chat.answers()) - found[-1].answers if found else 0
        elif layout == TOKENS:
            documents = [_encoded(*segment, args) for segment in segments(row)]
            return [{**made, "piece": 0, "rewritten": 0} for made in documents if made is not None]
        else:
            parts, rewritten = [_tokens(row, layout, tokenizer)], 0
        made = []
        for number, (ids, said) in enumerate(parts, 1 - len(parts)):
            encoded = _encoded(ids, said, args)
            if encoded is not None:
                encoded |= {"piece": -number, "rewritten": 0 if number else rewritten}
                made.append(encoded)
        return made

    def tokenize(
        self,
        rows: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        args: TaskSettings,
        field: str,
        needs_answer: bool = True,
        teacher_tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> Dataset:
        found = super().tokenize(rows, tokenizer, args, field, needs_answer, teacher_tokenizer)
        return _packed(found, args, field) if args.packing else found

    def remark(self, found: Dataset, args: TaskSettings, field: str) -> None:
        super().remark(found, args, field)
        if prompts := sum(found["prompt_cut"]):
            logger.warning(
                "%s: %d of %d prompts have max_length=%d tokens or more and lost their beginning: raise "
                "max_length",
                *(field, prompts, len(found), args.max_length),
            )
        many = sum(count > 0 for count in found["rewritten"])
        if not many:
            return
        rewrites = (
            f"{field}: the chat template rewrites earlier answers of {many} conversations (as those do "
        )
        rewrites += "that drop the thinking of earlier answers)"
        if args.rewritten_turns == "last":
            logger.warning(
                "%s: %d answers are not trained on, and rewritten_turns: split makes rows of them",
                *(rewrites, sum(found["rewritten"])),
            )
        else:
            logger.warning(
                "%s: each of them became several rows, %d more in all, in which every answer follows what it "
                "was an answer to; rewritten_turns: last trains on the last answers alone",
                *(rewrites, sum(piece > 0 for piece in found["piece"])),
            )

    def what_was_cut(self, args: TaskSettings) -> str:
        return (
            f"texts are longer than max_length={args.max_length} and were cut: raise max_length, or, for "
            "texts without prompts, set packing: true"
        )

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


def _tokens(
    row: Row, layout: tuple[str, ...], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[bool]]:
    """The tokens of a row without messages, and which of them are trained on; none for an empty text."""
    eos = tokenizer.eos_token_id
    if layout == ("text",):
        ids = closed(text_ids(row["text"], tokenizer), eos) if row["text"] else []
        return ids, [True] * len(ids)
    prompt, completion = (row[name] or "" for name in layout)
    if not completion:
        return [], []
    ids, said = pair_ids(prompt, completion, tokenizer)
    # The end of an answer without tokens must not be taken for that of the prompt.
    ids = closed(ids, eos) if any(said) else [*ids, *closed([], eos)]
    return ids, said + [True] * (len(ids) - len(said))


def _encoded(ids: list[int], said: list[bool], args: TaskSettings) -> Row | None:
    """The row, cut to ``max_length``; None if there is nothing to predict.

    It is cut at its end, so that a long answer never takes the place of its prompt. Only a prompt that has no
    room for an answer itself is cut, at its beginning: the answer then gets at most half of the row.
    """
    if len(ids) < 2 or not any(said[1:]):
        return None
    longest, first = args.max_length, said.index(True)
    cut = not args.packing and len(ids) > longest  # packing cuts later, and loses nothing
    prompt_cut = cut and first >= longest
    if cut:
        end = first + min(len(ids) - first, longest // 2) if prompt_cut else longest
        ids, said = ids[end - longest : end], said[end - longest : end]
    if not any(said[1:]):
        return None
    labels = [token if mine else IGNORE_INDEX for token, mine in zip(ids, said, strict=True)]
    return {"input_ids": ids, "labels": labels, "cut": cut, "prompt_cut": prompt_cut}


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
