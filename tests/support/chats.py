"""A tokenizer of bytes with the markers of chat templates, and templates as models have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

SPECIALS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
HEADER = "<|im_start|>{{ m.role }}\n"
OPENS = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

# Each turn by itself, as ChatML.
PLAIN = "{% for m in messages %}" + HEADER + "{{ m.content }}<|im_end|>\n{% endfor %}" + OPENS
# Every answer has a thinking block, which the generation prompt opens.
OPENED = (
    "{% for m in messages %}"
    + HEADER
    + "{% if m.role == 'assistant' %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    + "{{ m.content }}<|im_end|>\n{% endfor %}"
    + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
# Thinking is shown after the last message of the user only, as in Qwen 3.
DROPPED = (
    "{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}"
    + HEADER
    + "{% if m.role == 'assistant' and loop.index0 > ns.last %}<think>\n\n</think>\n\n{% endif %}"
    + "{{ m.content }}<|im_end|>\n{% endfor %}"
    + OPENS
)
# The author marked the answers, the end of the turn included.
MARKED = (
    "{% for m in messages %}"
    + HEADER
    + "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    + "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    + OPENS
)
TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}{% endfor %}<|im_end|>\n"
    "{% endif %}"
    "{% for m in messages %}"
    + HEADER
    + "{{ m.content }}{% for c in m.tool_calls or [] %}CALL {{ c.function | tojson }}{% endfor %}<|im_end|>\n"
    + "{% endfor %}"
    + OPENS
)


def tokenizer(
    template: str | None = None, merges: Sequence[tuple[str, str]] = (), begins: bool = False
) -> Any:
    """One token for each byte and each marker, and for each merge.

    Args:
        template: the chat template.
        merges: pairs of symbols that become one token (``Ċ`` is a line break, ``Ġ`` a space).
        begins: whether the tokenizer puts ``<s>`` in front of a text.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *alphabet, *(a + b for a, b in merges)])}
    made = Tokenizer(models.BPE(vocabulary, list(merges)))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(SPECIALS)
    if begins:
        made.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 0)])
    found = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    found.chat_template = template
    return found


class Slow(PreTrainedTokenizer):
    """A tokenizer in Python, without positions: one token for each letter, a mark at the beginning of a text
    and of each word, and one token for two line breaks.
    """

    def __init__(self, **kwargs: Any) -> None:
        letters = ["<s>", "</s>", "▁", "\n", "\n\n", *map(chr, range(33, 127))]
        self.ids = {letter: i for i, letter in enumerate(letters)}
        super().__init__(bos_token="<s>", eos_token="</s>", **kwargs)

    @property
    def vocab_size(self) -> int:
        return len(self.ids)

    def get_vocab(self) -> dict[str, int]:
        return {**self.ids, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        marked = ["▁", *text.replace(" ", "▁")]
        found: list[str] = []
        for letter in marked:
            if letter == "\n" and found[-1:] == ["\n"]:
                found[-1] = "\n\n"
            else:
                found.append(letter)
        return found

    def _convert_token_to_id(self, token: str) -> int:
        return self.ids[token]

    def _convert_id_to_token(self, index: int) -> str:
        return next(token for token, number in self.ids.items() if number == index)


def said(tokenizer: Any, row: dict[str, Any]) -> str:
    """The text of a row's labels."""
    return str(tokenizer.decode([label for label in row["labels"] if label != -100]))


def talk(*turns: str) -> list[dict[str, Any]]:
    """Messages of a user and an assistant in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
