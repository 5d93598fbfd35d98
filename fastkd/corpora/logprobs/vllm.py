"""Log-probabilities of a prompt's tokens, as vLLM writes them in JSON.

An answer is an object with ``prompt_token_ids`` and ``prompt_logprobs``, at its top (``RequestOutput``) or in
the first of its ``choices`` (completions of the OpenAI-compatible server). ``prompt_logprobs`` has an entry
for each token: null for the first, and for each other an object from token ids to log-probabilities at
temperature 1 over the whole vocabulary, given all tokens before it. A log-probability is a number, or an
object with ``logprob``. Besides the K largest there may be that of the token itself.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastkd.corpora.logprobs.position import ROUNDING, Position, too_much

# vLLM writes this, or a lower number, for minus infinity, which JSON does not have.
FLOOR = -9999.0


def parsed(given: Any, where: str) -> tuple[list[int], list[Position]]:
    """The tokens of a prompt, and the distributions of all of them but the first.

    Args:
        given: the JSON of an answer.
        where: names it in errors.

    Raises:
        ValueError: an answer that does not have the form above, or probabilities that sum to more than 1.
    """
    ids, logprobs = _found(given, "prompt_token_ids", where), _found(given, "prompt_logprobs", where)
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
        raise ValueError(f"{where}: prompt_token_ids must be a list of numbers")
    return ids, positions(logprobs, len(ids), where)


def positions(logprobs: list[Any], tokens: int, where: str) -> list[Position]:
    """The distributions of all tokens but the first; arguments and errors as for :func:`parsed`.

    Args:
        logprobs: the list ``prompt_logprobs``.
        tokens: how many tokens the prompt has.
        where: names the answer in errors.
    """
    if len(logprobs) != tokens:
        raise ValueError(f"{where}: {tokens} tokens have {len(logprobs)} entries in prompt_logprobs")
    return [_position(one, f"{where}, token {i + 1}") for i, one in enumerate(logprobs[1:], 1)]


def _found(given: Any, name: str, where: str) -> list[Any]:
    choices = given.get("choices") if isinstance(given, dict) else None
    for part in (given, choices[0] if isinstance(choices, list) and choices else None):
        if isinstance(part, dict) and isinstance(part.get(name), list):
            return list(part[name])
    raise ValueError(f"{where} has no list {name}: ask vLLM for prompt_logprobs, and for its token ids")


def _position(given: Any, where: str) -> Position:
    if not isinstance(given, dict) or not given:
        raise ValueError(f"{where} has no log-probabilities")
    found: dict[int, float] = {}
    for name, value in given.items():
        number = value.get("logprob") if isinstance(value, dict) else value
        if isinstance(number, bool) or not isinstance(number, (int, float)) or math.isnan(number):
            raise ValueError(f"{where}: {number!r} is no log-probability")
        if not str(name).isdigit():
            raise ValueError(f"{where}: {name!r} is no token id")
        found[int(name)] = float(number) if number > FLOOR else -math.inf
    columns = np.fromiter(found, np.int64)
    logprobs = np.fromiter(found.values(), np.float64)
    if (total := float(np.exp(logprobs).sum())) > 1 + ROUNDING:
        raise ValueError(f"{where}: {too_much(total)}")
    order = np.argsort(-logprobs, kind="stable")
    return Position(columns[order], logprobs[order])
