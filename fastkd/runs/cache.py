"""A teacher's distributions on disk, as ``fastkd cache`` makes them: run once, distil many times."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from fastkd.corpora.conversations import why_texts_change
from fastkd.corpora.labels import MULTI_LABEL, REGRESSION
from fastkd.corpora.languages import prepare_model
from fastkd.corpora.store import Manifest, Writer
from fastkd.corpora.store.encoding import Entries, bytes_per_token, drawn, top
from fastkd.corpora.store.fingerprints import data_digest, survey, tokenizer_fingerprint, weights_digest
from fastkd.corpora.store.held import KEY, Held, read_held
from fastkd.corpora.tasks import IGNORE_INDEX, TASKS, Batch, Task
from fastkd.corpora.tasks.base import Collator
from fastkd.corpora.vocabulary import too_narrow
from fastkd.directories import claimed
from fastkd.runs.classes import check_teacher
from fastkd.runs.output_directory import refuse_inputs
from fastkd.runs.train import load_data
from fastkd.trainer import zero
from fastkd.trainer.classes import in_order, named_classes
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.heads import find_linear_head
from fastkd.trainer.loading import check_tokens_of, load_teacher_model
from fastkd.trainer.models import Distribution, HiddenLogits, multiply_out
from fastkd.trainer.row_limits import check_rows
from fastkd.trainer.sides import name_padding, padding_token
from fastkd.trainer.teachers import LiveTeacher, Teacher, require_model

logger = logging.getLogger(__name__)

# A shard is closed at the first of these limits. They are small because a killed run loses its open shard.
SHARD_BYTES = 64 * 2**20
SHARD_TOKENS = 2**16
SHARD_ROWS = 1024
# Number of logits that are computed at a time.
_LOGITS_AT_ONCE = 2**26


def make_caches(args: DistillationConfig) -> dict[str, Manifest]:
    """Cache ``train_file`` into ``output_dir/train`` and ``eval_file``, if set, into ``output_dir/eval``.

    Returns:
        The manifests, by the name of the directory.

    Raises:
        ValueError: settings that name no teacher or no data, a kind that the teacher does not have, a
            directory that was begun with other settings, or that another run writes into.
        OSError: the directory cannot be written.
    """
    require_model(args.teacher, "a cache is made by a model")
    if args.world_size > 1:
        raise ValueError(f"a cache is made by one process, not {args.world_size}: start it without torchrun")
    args = copy.copy(args)
    zero.leave(args)
    args.model = args.model or args.teacher  # for its tokenizer
    refuse_inputs(args, checkpoints_too=False)
    folder = Path(str(args.output_dir))
    with claimed(folder):
        data = load_data(args)
        check_teacher(args)
        model = load_teacher_model(args)
        parts = {"train": data.train, "eval": data.held_out}
        return {
            name: make_cache(model, rows, folder / name, args, data.tokenizer)
            for name, rows in parts.items()
            if rows is not None
        }


def make_cache(
    teacher: PreTrainedModel,
    rows: Any,
    folder: Path,
    args: DistillationConfig,
    tokenizer: Any,
    shard_rows: int = SHARD_ROWS,
) -> Manifest:
    """Run a teacher over encoded rows, in their order, and store its distributions at all targets.

    An existing directory is resumed; at most its unfinished shard is lost. The settings that matter are
    ``task``, ``cache_kind``, ``cache_top_k``, ``cache_samples``, ``seed`` (of the draws) and
    ``per_device_eval_batch_size``. A ``hidden`` cache also stores the teacher's head, except in a directory
    called ``eval``, which is read together with ``train``. The other kinds note in the manifest how much of
    the distributions they hold, at temperature 1 and at that of the teacher in the settings.

    Args:
        teacher: frozen in place and put into eval mode.
        rows: with ``input_ids`` and ``labels``, as the task encodes them.
        folder: directory of the cache.
        args: the settings.
        tokenizer: the tokenizer that encoded the rows; None if there was none, and then it is not checked.
        shard_rows: most rows in a shard.

    Raises:
        ValueError: a directory that was begun with other settings, a head that is not linear (``hidden``), a
            teacher that gives NaN, rows without any target.
    """
    task = TASKS[args.task]
    check_rows(rows, f"the data for {folder}", task, {"teacher": teacher}, tokenizer)
    source = CacheSource(teacher, task, args, tokenizer)
    hashes, targets = survey(rows, task, f"hashing {folder.name}")
    if not targets.sum():
        raise ValueError(f"the rows for {folder} have no target: nothing could be learnt from them")
    made_from = {
        **source.description,
        "teacher_weights": weights_digest(source.teacher.model, "hashing the teacher"),
        "data": data_digest(hashes),
    }
    bounds = _bounds(targets, source.bytes_per_token, shard_rows)
    notes = {"teacher": args.teacher or teacher.name_or_path}
    writer = Writer(
        folder, args.cache_kind, made_from, bounds, ".safetensors", notes, why_texts_change(tokenizer)
    )
    if args.cache_kind == "hidden" and folder.name != "eval" and writer.manifest.head is None:
        writer.put_head(partial(save_file, source.head()))
    missing = writer.missing()
    source.teacher.to(args.device)
    with tqdm(
        total=len(rows),
        initial=len(rows) - sum(bounds[number][1] - bounds[number][0] for number in missing),
        desc=f"caching {folder.name}",
        unit="row",
        disable=args.disable_tqdm,
    ) as bar:
        for number in missing:
            first, last = bounds[number]
            tokens = int(targets[first:last].sum())
            shard = _Shard(hashes[first:last], tokens, tokens * source.entries_per_token)
            held = Held(cached_temperatures(args))
            for part in source.run(rows, first, last, held, bar):
                shard.add(part)
            metadata = None if args.cache_kind == "hidden" else {KEY: held.to_json()}
            writer.put(number, tokens, partial(save_file, shard.tensors(), metadata=metadata))
    if (total := read_held([folder / shard.name for shard in writer.manifest.shards])) is not None:
        writer.note(KEY, total.summary())
    return writer.manifest


def cached_temperatures(args: DistillationConfig) -> set[float]:
    """The temperatures at which the probability that entries hold is counted."""
    softened = args.teacher_temperature or args.temperature
    return {1.0, float(softened)} if args.cache_kind == "topk" else {1.0}


def _bounds(targets: np.ndarray, bytes_each: float, shard_rows: int) -> list[tuple[int, int]]:
    bounds, first, tokens = [], 0, 0
    most = min(SHARD_TOKENS, SHARD_BYTES / bytes_each)
    for row, count in enumerate(targets.tolist()):
        tokens += count
        if tokens >= most or row + 1 - first >= shard_rows:
            bounds.append((first, row + 1))
            first, tokens = row + 1, 0
    if first < len(targets):
        bounds.append((first, len(targets)))
    return bounds


class CacheSource:
    """A teacher, and the way in which its distributions are encoded."""

    def __init__(self, model: PreTrainedModel, task: Task, args: DistillationConfig, tokenizer: Any) -> None:
        self.task, self.args = task, args
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


class _Shard:
    """A shard's tensors, with each row's hash and the token and entry at which it begins.

    The tensors are allocated once. Small pieces that are kept while large logits are allocated and freed
    around them would each keep a part of the heap, as large as those logits, from being reused.

    Args:
        hashes: ``(rows, 16)``.
        tokens: number of tokens in all rows.
        entries: the most entries that these tokens can have.
    """

    def __init__(self, hashes: np.ndarray, tokens: int, entries: int) -> None:
        self.hashes, self.tokens, self.entries = hashes, tokens, entries
        self.offsets = np.zeros((len(hashes) + 1, 2), np.int64)
        self.rows = 0
        self.made: dict[str, Any] = {}

    def add(self, part: Entries | Tensor) -> None:
        """Append the next row."""
        token, entry = self.offsets[self.rows].tolist()
        if isinstance(part, Tensor):
            if not self.made:
                self.made = {"hidden": part.new_empty(self.tokens, part.shape[1])}
            sizes = len(part), 0
            self.made["hidden"][token : token + len(part)] = part
        else:
            if not self.made:
                self.made = {
                    "pages": np.empty((self.tokens, part.pages.shape[1]), part.pages.dtype),
                    "low": np.empty(self.entries, part.low.dtype),
                    "values": np.empty(self.entries, part.values.dtype),
                }
            sizes = len(part.pages), len(part.low)
            self.made["pages"][token : token + sizes[0]] = part.pages
            self.made["low"][entry : entry + sizes[1]] = part.low
            self.made["values"][entry : entry + sizes[1]] = part.values
        self.rows += 1
        self.offsets[self.rows] = token + sizes[0], entry + sizes[1]

    def tensors(self) -> Batch:
        """All tensors of the shard, once every row has been added."""
        ends = {"low": self.offsets[-1, 1], "values": self.offsets[-1, 1]}
        made = {
            name: x if isinstance(x, Tensor) else torch.from_numpy(x[: ends.get(name)])
            for name, x in self.made.items()
        }
        return {
            **made,
            "offsets": torch.from_numpy(self.offsets),
            "row_hashes": torch.from_numpy(self.hashes.copy()),
        }
