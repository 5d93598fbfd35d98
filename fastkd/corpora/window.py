"""The room that a model's window has for prompts and their answers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from fastkd.corpora.tasks import Task
from fastkd.corpora.tasks.seq2seq import fitted_source

logger = logging.getLogger(__name__)


def positions(model: Any) -> int | None:
    """The number of tokens that fit into a model's window; None if its positions are relative."""
    window = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return window if isinstance(window, int) and window > 1 else None


@dataclass(frozen=True)
class Limits:
    """The number of tokens that fit into a model's window.

    Attributes:
        window: number of tokens of a prompt and its answer together, or of a source; None means no limit.
        new_tokens: longest answer.
        apart: whether the prompt is a source, which has a window of its own.
    """

    window: int | None
    new_tokens: int
    apart: bool

    @classmethod
    def of(cls, model: Any, task: Task, max_new_tokens: int) -> Limits:
        window, apart = positions(model), task.name == "seq2seq"
        new_tokens = max_new_tokens if window is None else min(max_new_tokens, window - 1)
        if new_tokens < max_new_tokens:
            logger.warning(
                "max_completion_length=%d does not fit the model's window of %d tokens; %d are decoded",
                *(max_new_tokens, window, new_tokens),
            )
        return cls(window, new_tokens, apart)

    def fit(self, prompt: list[int], tokenizer: Any) -> list[int]:
        """The prompt, cut if it does not fit the window itself: a source at its end but for its closing
        tokens, a prompt at its beginning so far that a whole answer fits.
        """
        if not prompt:
            start = next((t for t in (tokenizer.bos_token_id, tokenizer.eos_token_id) if t is not None), 0)
            return [start]
        if self.window is None or len(prompt) < self.window + self.apart:
            return prompt
        if self.apart:
            return fitted_source(prompt, self.window, tokenizer)
        return prompt[-(self.window - self.new_tokens) :]

    def room(self, prompt: Sequence[int]) -> int:
        """The longest answer to a prompt that fits."""
        if self.window is None or self.apart:
            return self.new_tokens
        return min(self.new_tokens, self.window - len(prompt))

    def together(self, numbers: list[int], prompts: Sequence[Sequence[int]]) -> list[int]:
        """The first of the numbers whose prompts can be answered in one batch: where the window leaves less
        than a whole answer, only prompts of one length, so that no answer depends on its batch.
        """
        if all(self.room(prompts[number]) == self.new_tokens for number in numbers):
            return numbers
        length = len(prompts[numbers[0]])
        return list(takewhile(lambda number: len(prompts[number]) == length, numbers))

    def warn(self, fitted: Sequence[Sequence[int]], prompts: Sequence[Sequence[int]]) -> None:
        """Log how many prompts were cut, and how many leave less room than a whole answer needs."""
        cut = sum(
            bool(prompt) and len(fit) < len(prompt) for fit, prompt in zip(fitted, prompts, strict=True)
        )
        short = sum(self.room(prompt) < self.new_tokens for prompt in fitted)
        if cut:
            logger.warning(
                "%d of %d prompts do not fit the model's window of %d tokens and were cut",
                *(cut, len(prompts), self.window),
            )
        if short:
            logger.warning(
                "%d of %d prompts leave room for less than %d tokens in the model's window of %d: their "
                "answers may be cut",
                *(short, len(prompts), self.new_tokens, self.window),
            )
