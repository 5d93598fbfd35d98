"""Distributions that are asked for before they are needed, so that the student does not wait for them."""

from __future__ import annotations

import concurrent.futures
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from fastkd.corpora.logprobs import Position, row_key
from fastkd.served.vllm import Vllm

Item = TypeVar("Item")
Started = TypeVar("Started")
# The most open requests and answers that are held; the oldest are dropped, and asked for again if needed.
_MOST = 4096


class Ahead:
    """A teacher's distributions of rows of tokens.

    Args:
        model: the teacher.
        entries: log-probabilities of each token.

    Attributes:
        waited: seconds that :meth:`take` has waited for answers.
    """

    def __init__(self, model: Vllm, entries: int) -> None:
        self.model, self.entries = model, entries
        self.waited = 0.0
        self._open: dict[bytes, concurrent.futures.Future[Any]] = {}

    def ask(self, ids: Sequence[int]) -> None:
        """Ask for the distributions of a row, unless this was done before."""
        key = row_key(ids)
        if key not in self._open:
            while len(self._open) >= _MOST:
                self._open.pop(next(iter(self._open))).cancel()
            self._open[key] = self.model.read_later(ids, self.entries)

    def take(self, ids: Sequence[int]) -> list[Position]:
        """The distributions of all tokens of a row but the first. It waits for the answer, and forgets it.

        Raises:
            ValueError: the server refuses the request, does not answer for too long, or answers with
                something else.
        """
        self.ask(ids)
        began = time.monotonic()
        answer = self._open.pop(row_key(ids)).result()
        self.waited += time.monotonic() - began
        return self.model.positions_in(answer, len(ids), self.entries)


def under_way(
    items: Iterable[Item], start: Callable[[Item], Started], requests: int
) -> Iterator[tuple[Item, Started]]:
    """Each item with what starting it returned, in order. Twice as many are started as the server may have at
    a time, so that it always has work.

    Args:
        items: what is asked for, for example rows.
        start: sends the request of an item.
        requests: the most requests at a time.
    """
    waiting: deque[tuple[Item, Started]] = deque()
    for item in items:
        waiting.append((item, start(item)))
        if len(waiting) >= 2 * requests:
            yield waiting.popleft()
    yield from waiting
