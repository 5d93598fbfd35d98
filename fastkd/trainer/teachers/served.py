"""A teacher behind a URL, which answers with its most likely tokens."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from fastkd import SparseTeacher
from fastkd.corpora.logprobs import Position
from fastkd.corpora.tasks import IGNORE_INDEX, TASKS, Batch
from fastkd.corpora.tasks.base import Collator, Row
from fastkd.served import Ahead, Client, Server, model_of, probe
from fastkd.served.client import read_key
from fastkd.served.probe import compare_tokens
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.models import NOTHING_MORE, ModelOutput, Requested
from fastkd.trainer.teachers.source import TeacherSource

logger = logging.getLogger(__name__)


class ServedTeacher:
    """The ``teacher_top_k`` most likely tokens at each position, from a server.

    A batch is asked for while the one before it is trained on, where :meth:`attach` has been called.

    Args:
        args: the settings, whose ``teacher`` is the server's URL.

    Attributes:
        ahead: the distributions that are asked for.
        tokens_ahead: likewise, the log-probabilities of the tokens themselves.
        columns: the size of the vocabulary, once :meth:`check` has run.
        waited: seconds for which the student has waited.

    Raises:
        ValueError: a task other than ``causal_lm``, a server that is not there or has not the model.
    """

    live = True

    def __init__(self, args: DistillationConfig) -> None:
        if args.task != "causal_lm":
            raise ValueError(f"a served teacher reads texts, and needs task: causal_lm, not {args.task}")
        self.model = model_of(Client(server_of(args)))
        self.task = TASKS[args.task]
        self.columns = 0
        self.tail = args.cache_tail
        self.ahead = Ahead(self.model, args.teacher_top_k)
        self.tokens_ahead = Ahead(self.model, 0)

    @property
    def waited(self) -> float:
        return self.ahead.waited + self.tokens_ahead.waited

    def digest(self) -> str:
        """A digest of the model's name, by which a resumed run knows it again at another address."""
        return hashlib.sha256(f"{self.model.name} {self.model.root}".encode()).hexdigest()

    def check(self, args: DistillationConfig, tokenizer: Any) -> None:
        """Compare the server's model with the run, once, before its first step.

        Raises:
            ValueError: see :func:`fastkd.served.probe`.
        """
        if not self.columns:
            if tokenizer is None:
                raise ValueError("a served teacher needs the tokenizer: give it as processing_class")
            self.ahead.entries = min(args.teacher_top_k, len(tokenizer))
            probe(self.model, tokenizer, self.ahead.entries, args.max_length)
            self.columns = len(tokenizer)
            # Where every column is known there is no rest.
            if self.ahead.entries >= self.columns:
                self.tail = "renormalize"

    def compare_tokens(self, tokenizer: Any) -> None:
        """Raise a ``ValueError`` if the server's model has another tokenizer."""
        compare_tokens(self.model, tokenizer)

    def to(self, device: torch.device) -> None:
        """Nothing to move: the answers follow the batch."""

    def attach(self, collator: Any, args: DistillationConfig) -> Any:
        """The collator, which asks for a batch's distributions as soon as it makes the batch."""
        if not isinstance(collator, Collator) or args.dataloader_num_workers or args.lmbda:
            return collator
        return Collator(collator.task, collator.pad_token_id, (*collator.more, self._ask))

    def _ask(self, rows: Sequence[Row], batch: Batch) -> Batch:
        if get_worker_info() is None:
            for _, _, ids in self._documents(batch):
                self.ahead.ask(ids)
        return {}

    def __call__(self, batch: Batch, requested: Requested = NOTHING_MORE) -> ModelOutput:
        """The distributions of a batch's targets; ``(rows, length, teacher_top_k)``."""
        if requested != NOTHING_MORE:
            raise ValueError("a served teacher has no intermediate layers: give the model itself as teacher")
        documents = list(self._documents(batch))
        for _, _, ids in documents:
            self.ahead.ask(ids)
        wanted = self._wanted(batch)
        entries = self.ahead.entries
        indices = np.zeros((*wanted.shape, entries), np.int64)
        logprobs = np.full((*wanted.shape, entries), -math.inf, np.float32)
        known: dict[tuple[int, ...], list[Position]] = {}
        for row, start, ids in documents:
            key = tuple(ids)
            if key not in known:
                known[key] = self.ahead.take(ids)
            for place, one in enumerate(known[key], start):
                indices[row, place], logprobs[row, place] = one.columns, one.logprobs
        beyond = indices >= self.columns
        indices[beyond], logprobs[beyond] = 0, -math.inf
        logprobs[~wanted] = -math.inf
        device = batch["input_ids"].device
        columns, values = (torch.from_numpy(part).to(device) for part in (indices, logprobs))
        return ModelOutput(SparseTeacher(columns, values, self.tail))

    def token_logprobs(self, batch: Batch) -> Tensor:
        """``(rows, length)`` log-probability of each target; 0 where there is none."""
        wanted = self._wanted(batch)
        documents = list(self._documents(batch))
        for _, _, ids in documents:
            self.tokens_ahead.ask(ids)
        found = np.zeros(wanted.shape, np.float32)
        for row, start, ids in documents:
            for place, one in enumerate(self.tokens_ahead.take(ids), start):
                # With no other entries asked for, the only one is that of the token itself.
                found[row, place] = one.logprobs[0]
        found[~wanted] = 0.0
        return torch.from_numpy(found).to(batch["input_ids"].device)

    def _documents(self, batch: Batch) -> Iterator[tuple[int, int, list[int]]]:
        """The row, the first position and the tokens of each text that has a target and is read by itself: a
        row without its padding, or each of the texts that are packed into it.

        Raises:
            ValueError: tokens that are masked between others, which a server could not leave out.
        """
        wanted = self._wanted(batch)
        positions = batch.get("position_ids")
        for row, tokens in enumerate(batch["input_ids"].tolist()):
            if positions is not None:
                starts = (positions[row] == 0).nonzero().flatten().tolist()
                bounds = list(zip(starts, [*starts[1:], len(tokens)], strict=True))
            else:
                text = batch["attention_mask"][row].nonzero().flatten().tolist()
                bounds = [(text[0], text[-1] + 1)] if text else []
                if text and text[-1] + 1 - text[0] != len(text):
                    raise ValueError(
                        "a served teacher reads whole texts, and a row masks tokens between others"
                    )
            for start, end in bounds:
                if wanted[row, start : end - 1].any():
                    yield row, start, tokens[start:end]

    def _wanted(self, batch: Batch) -> np.ndarray:
        """Whether each position has a target, ``(rows, length)``."""
        found: np.ndarray = (self.task.targets(batch["labels"]) != IGNORE_INDEX).cpu().numpy()
        return found


def server_of(args: DistillationConfig) -> Server:
    """The server that the settings name.

    Raises:
        ValueError: a key that is named and cannot be read.
    """
    return Server(
        TeacherSource.parse(args.teacher).name,
        args.teacher_served_name,
        read_key(args.teacher_key_variable, args.teacher_key_file),
        args.teacher_requests,
        args.teacher_timeout,
        args.teacher_patience,
    )
