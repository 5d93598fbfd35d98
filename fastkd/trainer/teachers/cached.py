"""A teacher that was run before: its distributions are read from a cache, and its model is never loaded."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fastkd import SparseTeacher, kd_loss
from fastkd.corpora.conversations import why_texts_change
from fastkd.corpora.labels import MULTI_LABEL, SINGLE_LABEL, column_order
from fastkd.corpora.store import CacheReader
from fastkd.corpora.store.fingerprints import places, survey, tokenizer_fingerprint
from fastkd.corpora.store.manifest import NAME
from fastkd.corpora.tasks import IGNORE_INDEX, TASKS, Batch, Task
from fastkd.corpora.tasks.base import Collator, Row
from fastkd.files import file_digest
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.models import NOTHING_MORE, LinearHead, ModelOutput, Requested, multiply_out

logger = logging.getLogger(__name__)

# Key of a row's place in the cache: (``train`` or ``eval``, number of the row).
_PLACE = "teacher_row"
# Keys of the tensors in a batch from which its distributions are made.
_INDICES, _LOGPROBS, _HIDDEN = "teacher_indices", "teacher_logprobs", "teacher_hidden"


class CachedTeacher:
    """Reads the output of ``fastkd cache``: ``folder/train``, and ``folder/eval`` if it exists.

    It has distributions only for batches of rows that :meth:`attach` has checked. Without ``folder/eval``,
    evaluation runs without the teacher.

    Args:
        folder: directory of the cache.

    Raises:
        ValueError: no cache, an incomplete one, a manifest that was altered, parts that do not belong
            together.
    """

    live = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / "train" / NAME).exists():
            raise ValueError(
                f"there is no cache in {folder}: make one with fastkd cache CONFIG.yaml --output-dir {folder}"
            )
        self.readers = {"train": CacheReader(folder / "train")}
        if (folder / "eval" / NAME).exists():
            self.readers["eval"] = CacheReader(folder / "eval")
            parts = [reader.manifest for reader in self.readers.values()]
            for what in ("kind", *parts[0].made_from):
                values = [part.kind if what == "kind" else part.made_from.get(what) for part in parts]
                if what != "data" and values[0] != values[1]:
                    raise ValueError(
                        f"{folder}/train and {folder}/eval differ in {what}: make one of them again"
                    )
        self.kind = self.readers["train"].manifest.kind
        self.made_from = self.readers["train"].manifest.made_from
        self.columns: int = self.made_from["columns"]
        self.tail = "drop"
        self.fused = False
        self.head: LinearHead | None = None

    def digest(self) -> str:
        """A digest of the manifests, which hold the checksum of every file."""
        digests = [file_digest(self.folder / part / NAME) for part in self.readers]
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def to(self, device: torch.device) -> None:
        """Move the head to the student's device."""
        if self.head is not None:
            self.head.linear.to(device)

    def __call__(self, batch: Batch, requested: Requested = NOTHING_MORE) -> ModelOutput | None:
        """The distributions of a batch's rows; None for rows that the cache does not hold."""
        if requested != NOTHING_MORE:
            raise ValueError("a cached teacher has no intermediate layers: give the model itself as teacher")
        if _HIDDEN in batch:
            assert self.head is not None
            with torch.no_grad():
                factors = self.head.factors(batch[_HIDDEN])
                return ModelOutput(factors if self.fused else multiply_out(factors))
        if _INDICES in batch:
            return ModelOutput(SparseTeacher(batch[_INDICES], batch[_LOGPROBS], self.tail))
        return None

    def check(self, args: DistillationConfig, tokenizer: Any) -> None:
        """Validate that the cache fits this run. Its rows are checked by :meth:`attach`.

        Raises:
            ValueError: another task, tokenizer, temperature or order of classes, or a divergence that the
                kind of cache does not support.
        """
        made = self.made_from
        if made["task"] != args.task:
            raise ValueError(f"{self.folder} was made for the task {made['task']}, not for {args.task}")
        if made["tokenizer"] is not None:
            if tokenizer is None:
                raise ValueError(
                    f"{self.folder} records its tokenizer: give yours as processing_class, to compare them"
                )
            if made["tokenizer"] != tokenizer_fingerprint(tokenizer):
                raise ValueError(
                    f"{self.folder} was made with another tokenizer: make it again with the student's"
                )
        names = made.get("class_names")
        if (
            names is not None
            and args.class_names is not None
            and column_order(args.class_names, names) is None
        ):
            raise ValueError(
                f"{self.folder} has the classes {', '.join(names)}, and the data "
                f"{', '.join(args.class_names)}: make the cache again with a teacher of the data's classes"
            )
        if args.task == "classification":
            problem = made.get("problem_type", SINGLE_LABEL)
            if args.problem_type not in (None, problem):
                raise ValueError(
                    f"{self.folder} was made with problem_type: {problem}, and the run's is "
                    f"{args.problem_type}: make it again"
                )
        if self.kind == "hidden":
            return
        if made.get("temperature") != 1:
            raise ValueError(
                f"{self.folder} holds distributions at temperature {made.get('temperature')}, "
                "and only those at 1 can be read: make it again"
            )
        tail = self._tail(args)
        temperatures = (args.temperature, args.teacher_temperature or args.temperature)
        if tail == "drop" and temperatures != (1, 1):
            raise ValueError(
                "a sampled cache is known at temperature 1 only: set temperature: 1, or make a topk or "
                "hidden cache"
            )
        logits = torch.zeros(1, 3)
        few = SparseTeacher(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1), tail)
        try:
            kd_loss(logits, few, torch.zeros(1, dtype=torch.long), **args.loss_options())
        except ValueError as error:
            allowed = "forward_kl" if tail == "drop" else "another"
            raise ValueError(
                f"divergence: {args.divergence} does not work with a {self.kind} cache: set {allowed}, "
                "or make a cache with cache_kind: hidden"
            ) from error

    def _tail(self, args: DistillationConfig) -> str:
        if self.kind == "sampled":
            return "drop"
        # Where every column is stored there is no rest, and one made of rounding would be softened.
        width = 2 if self.made_from.get("problem_type") == MULTI_LABEL else self.made_from["columns"]
        return "renormalize" if self.made_from.get("cache_top_k", 0) >= width else args.cache_tail

    def attach(
        self,
        train: Any,
        held_out: Any,
        collator: Any,
        *,
        args: DistillationConfig,
        tokenizer: Any,
        fused: bool,
        vocab_size: int | None,
    ) -> tuple[Any, Any, Any]:
        """The data sets, each of whose rows is looked up in the cache, and a collator that adds the cache's
        tensors. A data set may be in another order than the cache, and leave out rows.

        Args:
            train, held_out: data sets of encoded rows with a length; either may be None.
            collator: a :class:`Collator`.
            args, tokenizer: the run's.
            fused: whether the student's output is hidden states, not logits.
            vocab_size: number of columns that student and teacher both have, None for all.

        Raises:
            ValueError: a cache that does not fit this run, or a damaged file in it.
        """
        self.check(args, tokenizer)
        if not isinstance(collator, Collator):
            raise ValueError("a cached teacher needs fastkd's own collator: leave data_collator unset")
        self.tail, self.fused = self._tail(args), fused
        if train is not None:
            train = self._placed("train", train, "the training data", args, tokenizer)
        if held_out is not None and "eval" not in self.readers:
            logger.warning(
                "%s has no part for the evaluation data, which is evaluated without the teacher", self.folder
            )
        elif isinstance(held_out, dict):
            logger.warning("a cache has one evaluation set: several are evaluated without the teacher")
        elif held_out is not None:
            held_out = self._placed("eval", held_out, "the evaluation data", args, tokenizer)
        if self.kind == "hidden":
            self.readers["train"].verify(self._title("train", args))
            self.head = self._read_head()
        add = _TeacherSide(self.readers, TASKS[args.task], vocab_size)
        return train, held_out, Collator(collator.task, collator.pad_token_id, (*collator.more, add))

    def _title(self, part: str, args: DistillationConfig) -> str | None:
        return None if args.disable_tqdm or args.process_index else f"checking the {part} cache"

    def _placed(self, part: str, rows: Any, what: str, args: DistillationConfig, tokenizer: Any) -> Any:
        reader = self.readers[part]
        if not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__"):
            raise ValueError(f"a cached teacher needs rows with numbers: {what} must not be a stream")
        title = self._title(part, args)
        reader.verify(title)
        hashes, _ = survey(rows, TASKS[args.task], None if title is None else f"looking up {what}")
        found = places(hashes, reader.all_row_hashes())
        missing = np.flatnonzero(found < 0)
        if len(missing):
            raise ValueError(
                f"{len(missing):,} of {len(rows):,} rows of {what} are not in {self.folder}/{part}, row "
                f"{missing[0]} (counted from 0) first: its text or the length limits have "
                f"changed{why_texts_change(tokenizer)}, make the cache again"
            )
        if not np.array_equal(found, np.arange(len(reader))):
            logger.warning(
                "%s: %d of its %d rows are read, in the order of %s",
                *(reader.manifest.folder, len(np.unique(found)), len(reader), what),
            )
        return _Placed(rows, part, found)

    def _read_head(self) -> LinearHead:
        tensors = self.readers["train"].head()
        weight, bias = tensors["weight"], tensors.get("bias")
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            linear.bias = nn.Parameter(bias, requires_grad=False)
        return LinearHead(linear, None, self.made_from["logit_scale"], self.made_from["logit_softcap"])


class _Placed(Dataset[Row]):
    """Rows with their place in the cache added under ``_PLACE``.

    Args:
        rows, part: the rows, and the part of the cache that holds them.
        places: the number in the cache of each row.
    """

    def __init__(self, rows: Any, part: str, places: np.ndarray) -> None:
        self.rows, self.part, self.places = rows, part, places

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Row:
        return {**self.rows[number], _PLACE: (self.part, int(self.places[number]))}

    def __getitems__(self, numbers: list[int]) -> list[Row]:
        many = getattr(self.rows, "__getitems__", None)
        found = many(numbers) if many is not None else [self.rows[number] for number in numbers]
        return [
            {**row, _PLACE: (self.part, int(self.places[n]))} for row, n in zip(found, numbers, strict=True)
        ]


class _TeacherSide:
    """Adds to a batch the tensors that the cache has for its rows. Data loaders copy it to their workers."""

    def __init__(self, readers: dict[str, CacheReader], task: Task, vocab_size: int | None) -> None:
        self.readers, self.task, self.vocab_size = readers, task, vocab_size

    def __call__(self, rows: Sequence[Row], batch: Batch) -> Batch:
        if not all(_PLACE in row for row in rows):
            return {}
        places = [(self.readers[part], number) for part, number in (row[_PLACE] for row in rows)]
        mask = self.task.targets(batch["labels"]) != IGNORE_INDEX
        if places[0][0].manifest.kind == "hidden":
            found = torch.cat([reader.hidden(number) for reader, number in places])
            hidden = found.new_zeros(*mask.shape, found.shape[-1])
            hidden[mask] = found
            return {_HIDDEN: hidden}
        return self._sparse(places, mask)

    def _sparse(self, places: list[tuple[CacheReader, int]], mask: Tensor) -> Batch:
        read = [reader.entries(number) for reader, number in places]
        columns = np.concatenate([part.columns() for part in read])
        each = np.concatenate([part.per_token() for part in read])
        values = np.concatenate([part.values for part in read])
        token = np.repeat(np.arange(len(each)), each)
        kept = np.ones(len(columns), bool) if self.vocab_size is None else columns < self.vocab_size
        if values.dtype == np.float16:
            logprobs = values  # left in float16: the loss derives its tolerance for rounding from the dtype
        else:  # draws outside the common columns are discarded
            drawn = np.bincount(token, weights=np.where(kept, values, 0), minlength=len(each))
            with np.errstate(divide="ignore", invalid="ignore"):
                logprobs = np.log(values / drawn[token]).astype(np.float32)
        logprobs[~kept] = -math.inf
        columns[~kept] = 0
        # Each token's entries, padded with entries of probability 0.
        width = max(1, int(each.max(initial=0)))
        slot = np.arange(len(columns)) - np.repeat(np.cumsum(each) - each, each)
        indices = torch.zeros(*mask.shape, width, dtype=torch.long)
        dense_logprobs = np.full((len(each), width), -math.inf, logprobs.dtype)
        weights = torch.full((*mask.shape, width), -math.inf, dtype=torch.from_numpy(dense_logprobs).dtype)
        dense_indices = np.zeros((len(each), width), np.int64)
        dense_indices[token, slot], dense_logprobs[token, slot] = columns, logprobs
        indices[mask], weights[mask] = torch.from_numpy(dense_indices), torch.from_numpy(dense_logprobs)
        return {_INDICES: indices, _LOGPROBS: weights}
