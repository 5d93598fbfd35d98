"""Compares a server's model with a run before its first step."""

from __future__ import annotations

import logging
import random
from typing import Any

import numpy as np

from fastkd.corpora.logprobs import RENORMALISED
from fastkd.served.client import ServerRefused
from fastkd.served.vllm import Vllm

logger = logging.getLogger(__name__)

# Letters, accents, numbers, code, spaces and an emoji, which tokenizers cut in different ways.
_TEXT = "The quick brown fox: naïve Straße, 1,234.5 + x_i == [0]\n\t日本語  \U0001f600 end."
# Tokens of the random prompt at which a model is uncertain, so that its K largest do not sum to 1.
_RANDOM = 24
# By how much two answers to the same prompt may differ, since batches are computed in other orders.
_SAME = 0.05


def probe(model: Vllm, tokenizer: Any, entries: int, longest: int) -> None:
    """Raise a ``ValueError`` if the server's model cannot teach this run.

    Args:
        model: the server's model.
        tokenizer: the student's; None if there is none, and then tokens are not compared.
        entries: log-probabilities of each token that the run asks for.
        longest: the most tokens in a row of the run.

    Raises:
        ValueError: other tokens, a context that is too short, too few log-probabilities, or ones that are
            not those at temperature 1 over the whole vocabulary.
    """
    url = model.client.server.url
    if model.longest is not None and longest >= model.longest:
        raise ValueError(
            f"the model at {url} reads {model.longest} tokens and writes one of them, and max_length is "
            f"{longest}: set it to {model.longest - 1}, or start the server with a larger --max-model-len"
        )
    if tokenizer is not None:
        compare_tokens(model, tokenizer)
    _compare_probabilities(model, tokenizer, entries)


def compare_tokens(model: Vllm, tokenizer: Any) -> None:
    """Raise a ``ValueError`` if the server cuts a text or the special tokens in another way."""
    url = model.client.server.url
    specials = "".join(dict.fromkeys(map(str, tokenizer.all_special_tokens)))
    for text, what in ((_TEXT, "a text"), (specials, "the special tokens")):
        ours, theirs = tokenizer(text, add_special_tokens=False)["input_ids"], model.tokens_of(text)
        if theirs is None:
            logger.warning("the server at %s has no /tokenize: its tokens are not compared", url)
            return
        if list(ours) != theirs:
            raise ValueError(
                f"the model at {url} has another tokenizer than the student: it cuts {what} into "
                f"{theirs[:8]}..., and the student's tokenizer into {list(ours)[:8]}..."
            )


def _compare_probabilities(model: Vllm, tokenizer: Any, entries: int) -> None:
    url = model.client.server.url
    count = 256 if tokenizer is None else len(tokenizer)
    draw = random.Random(0)
    ids = [draw.randrange(count) for _ in range(_RANDOM)] + [count - 1]
    try:
        answers = [
            model.positions_in(model.read_later(ids, most, **sampling).result(), len(ids), most)
            for most, sampling in ((entries, {}), (1, {"temperature": 0.25, "top_p": 0.1}))
        ]
    except ServerRefused as error:
        said = str(error).lower()
        if "logprobs" in said and ("max" in said or "greater" in said):
            raise ValueError(
                f"the server at {url} gives fewer log-probabilities than the {entries} asked for: start it "
                f"with --max-logprobs {entries}, or set a smaller teacher_top_k (for fastkd cache: "
                f"cache_top_k). {error}"
            ) from error
        if "vocab" in said:
            raise ValueError(
                f"the model at {url} does not know token {count - 1}, the last of the student's tokenizer: "
                f"it was made for another one. {error}"
            ) from error
        raise
    given, alone = answers
    if any(np.isneginf(one.logprobs).any() for one in given):
        raise ValueError(
            f"the server at {url} hides tokens from its log-probabilities (top_k, top_p or min_p): start it "
            "with --logprobs-mode raw_logprobs"
        )
    sums = [float(np.exp(one.logprobs).sum()) for one in given]
    if entries < count and min(sums) > 1 - RENORMALISED:
        raise ValueError(
            f"the {entries} probabilities that the server at {url} gives of each token sum to 1, also for "
            "random text: it has renormalised them; start it with --logprobs-mode raw_logprobs"
        )
    differ = max(abs(float(a.logprobs[0] - b.logprobs[0])) for a, b in zip(given, alone, strict=True))
    if differ > _SAME:
        raise ValueError(
            f"the log-probabilities that the server at {url} gives of a prompt depend on temperature, top_p "
            "or their number: start it with --logprobs-mode raw_logprobs"
        )
