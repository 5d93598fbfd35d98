"""A teacher that is run to be cached: its distributions at all targets, in the form that a cache stores."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from fastkd.corpora.labels import MULTI_LABEL, REGRESSION
from fastkd.corpora.languages import prepare_model
from fastkd.corpora.store.encoding import Entries, bytes_per_token, drawn, top
from fastkd.corpora.store.fingerprints import tokenizer_fingerprint, weights_digest
from fastkd.corpora.store.held import Held
from fastkd.corpora.tasks import IGNORE_INDEX, Task
from fastkd.corpora.tasks.base import Collator
from fastkd.corpora.vocabulary import too_narrow
from fastkd.trainer.classes import in_order, named_classes
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.heads import find_linear_head
from fastkd.trainer.loading import check_tokens_of
from fastkd.trainer.models import Distribution, HiddenLogits, multiply_out
from fastkd.trainer.sides import name_padding, padding_token
from fastkd.trainer.teachers import LiveTeacher, Teacher

# Number of logits that are computed at a time.
_LOGITS_AT_ONCE = 2**26


def cached_temperatures(args: DistillationConfig) -> set[float]:
    """The temperatures at which the probability that entries hold is counted."""
    softened = args.teacher_temperature or args.temperature
    return {1.0, float(softened)} if args.cache_kind == "topk" else {1.0}


class CacheSource:
    """A teacher, and the way in which its distributions are encoded."""

    def __init__(self, model: PreTrainedModel, task: Task, args: DistillationConfig, tokenizer: Any) -> None:
        self.task, self.args, self.tokenizer = task, args, tokenizer
        self.temperatures = cached_temperatures(args)
        self.teacher_name = args.teacher or str(model.name_or_path)
        if task.name == "seq2seq":
            prepare_model(model, tokenizer, args)
        self.kind = args.cache_kind
        # The head is kept apart, so that logits are computed only at targets, and a few at a time.
        self.teacher = LiveTeacher(model, task, fused=task.name != "classification")
        self.reader: Teacher = self.teacher
        if self.kind == "hidden" and self.teacher.head is None:
            reason = find_linear_head(model) if task.name != "classification" else "a classifier has none"
            raise ValueError(
                f"cache_kind: hidden needs a linear head over a vocabulary, but {reason}: "
                "set cache_kind: topk"
            )
        self.columns = int(self.teacher.columns)  # type: ignore[arg-type]
        check_tokens_of(model, tokenizer, args)
        tokens = 0 if tokenizer is None or task.name == "classification" else len(tokenizer)
        if (trouble := too_narrow(tokens, {"teacher": self.columns})) is not None:
            raise ValueError(f"{trouble}: set model to a student with the teacher's tokenizer")
        self.collate = Collator(task, padding_token(model, tokenizer))
        problem: Any = args.problem_type or getattr(model.config, "problem_type", None)
        if task.name == "classification":
            if problem == REGRESSION:
                raise ValueError(
                    "a cache holds distributions, and a regression predicts numbers: "
                    "distil from the model itself"
                )
            model.config.problem_type = problem
            name_padding({"teacher": model}, self.collate.pad_token_id)
            self.reader = in_order(self.teacher, args.class_names, problem)
        # Each label of a multi-label teacher is a distribution over two columns.
        self.width = 2 if problem == MULTI_LABEL else self.columns
        most = {"topk": args.cache_top_k, "sampled": args.cache_samples, "hidden": 0}[self.kind]
        self.entries_per_token = min(most, self.width)
        settings: dict[str, Any] = {
            "topk": {"cache_top_k": args.cache_top_k, "temperature": 1.0},
            "sampled": {"cache_samples": args.cache_samples, "temperature": 1.0, "seed": args.seed},
            "hidden": {},
        }[self.kind]
        if self.kind == "hidden":
            head = self.teacher.head
            assert head is not None
            settings = {
                "hidden_size": head.linear.in_features,
                "logit_scale": head.logit_scale,
                "logit_softcap": head.logit_softcap,
            }
        self.description = {
            "task": task.name,
            "positions": "logits at i predict label i + 1"
            if task.shifts_labels
            else "logits at i predict label i",
            "tokenizer": None if tokenizer is None else tokenizer_fingerprint(tokenizer),
            "columns": self.columns,
            **settings,
        }
        if task.name == "classification":
            self.description["class_names"] = args.class_names or named_classes(model.config)
            if problem is not None:
                self.description["problem_type"] = problem
        width = model.get_output_embeddings() if self.kind == "hidden" else None
        self.bytes_per_token = bytes_per_token(
            self.kind,
            self.width,
            args.cache_top_k,
            args.cache_samples,
            0 if width is None else width.in_features,
            model.dtype.itemsize,
        )

    def origin(self) -> dict[str, Any]:
        """A digest of the teacher's weights, for the manifest."""
        return {"teacher_weights": weights_digest(self.teacher.model, "hashing the teacher")}

    def start(self) -> None:
        """Move the teacher to its device."""
        self.teacher.to(self.args.device)

    def head(self) -> dict[str, Tensor]:
        """The head's tensors, as :class:`CachedTeacher` reads them."""
        head = self.teacher.head
        assert head is not None
        factors = head.factors(head.linear.weight.new_zeros(0, head.linear.in_features))
        found = {"weight": factors.weight, "bias": factors.bias}
        return {name: x.detach().cpu().contiguous() for name, x in found.items() if x is not None}

    def run(
        self, rows: Any, first: int, last: int, held: Held, bar: Any = None
    ) -> Iterator[Entries | Tensor]:
        """The stored form of each row, in order; ``held`` counts what the entries hold.

        Each shard starts a new batch, so that a resumed run makes the same batches.
        """
        size = self.args.per_device_eval_batch_size
        for start in range(first, last, size):
            numbers = range(start, min(start + size, last))
            batch = self.collate([rows[number] for number in numbers])
            batch = {name: x.to(self.teacher.model.device) for name, x in batch.items()}
            distribution = self.reader(batch).distribution  # type: ignore[union-attr]
            mask = self.task.targets(batch["labels"]) != IGNORE_INDEX
            for i, number in enumerate(numbers):
                yield self._stored(_picked(distribution, i, mask), number, held)
            if bar is not None:
                bar.update(len(numbers))

    def _stored(self, given: Tensor | HiddenLogits, row: int, held: Held) -> Entries | Tensor:
        if self.kind == "hidden":
            assert isinstance(given, HiddenLogits)
            _refuse_nan(given.hidden, row)
            return given.hidden.cpu()
        # Each row has its own generator, so that a resumed run draws what an uninterrupted one would have.
        hidden = given if isinstance(given, Tensor) else given.hidden
        generator = torch.Generator(hidden.device)
        generator.manual_seed(_row_seed(self.args.seed, row))
        at_once = max(1, _LOGITS_AT_ONCE // self.width)
        made = []
        for start in range(0, max(1, len(hidden)), at_once):
            part = hidden[start : start + at_once]
            logits = multiply_out(part if isinstance(given, Tensor) else replace(given, hidden=part))
            _refuse_nan(logits, row)
            if self.kind == "topk":
                made.append(top(logits, self.args.cache_top_k))
            else:
                made.append(drawn(logits, self.args.cache_samples, generator))
            held.add(logits, made[-1])
        return _joined(made)


def _picked(distribution: Distribution, row: int, mask: Tensor) -> Tensor | HiddenLogits:
    """A row's distributions at its targets, ``(targets, ...)``."""
    if isinstance(distribution, HiddenLogits):
        return replace(distribution, hidden=distribution.hidden[row][mask[row]])
    assert isinstance(distribution, Tensor)
    return (
        distribution[row][mask[row]] if mask.dim() > 1 else distribution[row : row + 1][mask[row : row + 1]]
    )


def _row_seed(seed: int, row: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {row}".encode(), digest_size=7).digest(), "little")


def _refuse_nan(found: Tensor, row: int) -> None:
    if torch.isnan(found).any():
        raise ValueError(
            f"the teacher gives NaN for row {row} (counted from 0): check its weights, "
            "or load it in another dtype with teacher_model_init_kwargs"
        )


def _joined(parts: list[Entries]) -> Entries:
    return Entries(
        np.concatenate([part.pages for part in parts]),
        np.concatenate([part.low for part in parts]),
        np.concatenate([part.values for part in parts]),
    )
