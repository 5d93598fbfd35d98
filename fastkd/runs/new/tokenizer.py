"""Tokenizers trained on the data of a run, each of the kind that its family of models uses."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

from fastkd.corpora.conversations import content_text
from fastkd.corpora.known_columns import columns_of
from fastkd.corpora.labels import COLUMNS as LABEL_COLUMNS
from fastkd.corpora.tasks import Task
from fastkd.corpora.tasks.forms import check_values, is_messages

# Rows that are read from the data set at once.
_BATCH = 1_000
# Texts on which the length of a token is measured.
_MEASURED = 1_000
# The end of a message in the chat template.
_END_OF_TURN = "<|im_end|>"
# ChatML, the form in which most models mark who says what.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Texts:
    """The texts of a data set that a task reads.

    Attributes:
        rows: the data set.
        columns: the columns with texts or messages.
        has_messages: whether some of them hold conversations.
    """

    rows: Any
    columns: tuple[str, ...]
    has_messages: bool

    @classmethod
    def of(cls, rows: Any, task: Task, field: str = "train_file") -> Texts:
        """The texts of a data set.

        Raises:
            ValueError: it has no columns that the task reads.
        """
        there = columns_of(rows)
        layout = task.layout_of(there, field, needs_answer=False)
        names = [name for name in task.columns_read(layout, there) if name not in LABEL_COLUMNS]
        answers = [
            last for full in task.layouts if full[:-1] == layout for last in full[-1:] if last in there
        ]
        columns = tuple(dict.fromkeys([*names, *(a for a in answers if a not in LABEL_COLUMNS)]))
        first: dict[str, Any] = next(iter(rows), {})
        return cls(rows, columns, any(is_messages(first.get(name)) for name in columns))

    def __iter__(self) -> Iterator[str]:
        rows = self.rows.select_columns(list(self.columns))
        interval = 0.2 if sys.stderr.isatty() else 10.0
        with tqdm(total=len(rows), desc="reading texts", unit="row", mininterval=interval, delay=1.0) as bar:
            for batch in rows.iter(batch_size=_BATCH):
                values = [batch[name] for name in self.columns]
                for row in zip(*values, strict=True):
                    check_values(dict(zip(self.columns, row, strict=True)), self.columns, self.columns)
                    for value in row:
                        yield from _texts(value)
                bar.update(len(values[0]))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif is_messages(value):
        for message in value:
            if text := content_text(message.get("content")):
                yield text


def train(texts: Texts, architecture: str, size: int) -> tuple[PreTrainedTokenizerFast, list[str]]:
    """A tokenizer of at most ``size`` tokens, and sentences that describe it.

    Raises:
        ValueError: no text, or a size in which the family's first tokens have no room.
    """
    counted = _Counted(texts)
    made = _KINDS[architecture](counted, size, texts.has_messages)
    if not counted.characters:
        raise ValueError("train_file holds no text: a tokenizer needs some to be trained on")
    said = [
        f"tokenizer: {len(made):,} tokens, trained on {counted.texts:,} texts ({counted.characters:,} "
        f"characters) of {', '.join(texts.columns)}; {_per_token(made, counted.first):.1f} characters a token"
    ]
    if len(made) < size:
        said.append(f"the texts give no more tokens than these ({size:,} were asked for)")
    if made.chat_template:
        said.append("the data has messages, so the tokenizer got a chat template (ChatML)")
    return made, said


def _per_token(made: PreTrainedTokenizerFast, texts: list[str]) -> float:
    encoded = made(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return sum(map(len, texts)) / max(1, sum(map(len, encoded)))


class _Counted:
    """Texts that are counted while they are read; the first ones are kept."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.source, self.texts, self.characters = texts, 0, 0
        self.first: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for text in self.source:
            if text:
                self.texts += 1
                self.characters += len(text)
                if len(self.first) < _MEASURED:
                    self.first.append(text)
                yield text


def _byte_level(texts: Iterable[str], size: int, special: list[str]) -> Tokenizer:
    """A byte-level BPE (Sennrich et al. 2016, on bytes as in GPT-2), which gives every text back exactly."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if size < len(alphabet) + len(special):
        raise ValueError(
            f"vocab_size {size} has no room for the {len(alphabet)} bytes and {len(special)} special tokens: "
            f"give at least {len(alphabet) + len(special)}"
        )
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        texts, trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, **_options(size))
    )
    return made


def _llama(texts: Iterable[str], size: int, has_messages: bool) -> PreTrainedTokenizerFast:
    """The tokens of Llama 3, and with conversations those of their turns; every text begins with one."""
    first, last, padding = "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"
    turns = ["<|im_start|>", _END_OF_TURN] if has_messages else []
    made = _byte_level(texts, size, [first, last, padding, *turns])
    made.post_processor = _template(made, f"{first} $A", f"{first} $A {first}:1 $B:1", [first])
    tokenizer = _fast(
        made, bos_token=first, eos_token=_END_OF_TURN if has_messages else last, pad_token=padding
    )
    if has_messages:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _bart(texts: Iterable[str], size: int, has_messages: bool) -> PreTrainedTokenizerFast:
    """The tokens of BART, with its numbers; a text is between ``<s>`` and ``</s>``."""
    made = _byte_level(texts, size, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    made.post_processor = _template(made, "<s> $A </s>", "<s> $A </s> </s> $B </s>", ["<s>", "</s>"])
    return _fast(
        made,
        bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>", pad_token="<pad>",
        unk_token="<unk>", mask_token="<mask>",
    )  # fmt: skip


def _t5(texts: Iterable[str], size: int, has_messages: bool) -> PreTrainedTokenizerFast:
    """The tokens of T5, with its numbers; ``</s>`` ends a text.

    T5's own unigram model is not trained here: `tokenizers` trains another one each time, whatever the seed,
    and it knows neither line breaks nor characters that the data lacks.
    """
    made = _byte_level(texts, size, ["<pad>", "</s>", "<unk>"])
    made.post_processor = _template(made, "$A </s>", "$A </s> $B </s>", ["</s>"])
    return _fast(made, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def _bert(texts: Iterable[str], size: int, has_messages: bool) -> PreTrainedTokenizerFast:
    """The word pieces of BERT, uncased; ``[CLS]`` begins a text and ``[SEP]`` ends it."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(texts, trainers.WordPieceTrainer(special_tokens=special, **_options(size)))
    made.post_processor = _template(made, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ["[CLS]", "[SEP]"])
    return _fast(
        made,
        ("input_ids", "token_type_ids", "attention_mask"),
        cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]",
    )  # fmt: skip


def _options(size: int) -> dict[str, Any]:
    return {"vocab_size": size, "show_progress": sys.stderr.isatty()}


def _template(made: Tokenizer, single: str, pair: str, special: list[str]) -> Any:
    return processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(token, made.token_to_id(token)) for token in special]
    )


def _fast(
    made: Tokenizer, inputs: tuple[str, ...] = ("input_ids", "attention_mask"), **special: str
) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_input_names=list(inputs),
        clean_up_tokenization_spaces=False,
        **special,
    )


_KINDS: dict[str, Callable[[Iterable[str], int, bool], PreTrainedTokenizerFast]] = {
    "llama": _llama,
    "t5": _t5,
    "bart": _bart,
    "bert": _bert,
}
