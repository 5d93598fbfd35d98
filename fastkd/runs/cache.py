"""A teacher's distributions on disk, as ``fastkd cache`` makes them: run once, distil many times."""

from __future__ import annotations

import copy
import logging
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
from fastkd.corpora.store import Manifest, Writer
from fastkd.corpora.store.encoding import Entries
from fastkd.corpora.store.fingerprints import data_digest, survey
from fastkd.corpora.store.held import KEY, Held, read_held
from fastkd.corpora.tasks import TASKS, Batch
from fastkd.directories import claimed
from fastkd.runs import cache_file
from fastkd.runs.cache_file import FileSource, open_files
from fastkd.runs.cache_positions import PositionSource
from fastkd.runs.cache_served import ServedSource
from fastkd.runs.cache_source import CacheSource
from fastkd.runs.classes import check_teacher
from fastkd.runs.output_directory import refuse_inputs
from fastkd.runs.train import load_data
from fastkd.trainer import zero
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.loading import load_teacher_model
from fastkd.trainer.row_limits import check_rows
from fastkd.trainer.teachers import ServedTeacher, TeacherSource, require_model

logger = logging.getLogger(__name__)

# A shard is closed at the first of these limits. They are small because a killed run loses its open shard.
SHARD_BYTES = 64 * 2**20
SHARD_TOKENS = 2**16
SHARD_ROWS = 1024


def make_caches(args: DistillationConfig) -> dict[str, Manifest]:
    """Cache ``train_file`` into ``output_dir/train`` and ``eval_file``, if set, into ``output_dir/eval``.

    Returns:
        The manifests, by the name of the directory.

    Raises:
        ValueError: settings that name no teacher or no data, a kind that the teacher does not have, a
            directory that was begun with other settings, or that another run writes into.
        OSError: the directory cannot be written.
    """
    if args.world_size > 1:
        raise ValueError(f"a cache is made by one process, not {args.world_size}: start it without torchrun")
    args = copy.copy(args)
    served = args.cache_from is None and TeacherSource.parse(args.teacher).is_served
    if args.cache_from is None and not served:
        require_model(args.teacher, "a cache is made by a model")
    if served and args.model is None:
        raise ValueError("model is not set: a served teacher's cache needs the student's tokenizer")
    zero.leave(args)
    args.model = args.model or args.teacher  # for its tokenizer
    refuse_inputs(args, checkpoints_too=False)
    folder = Path(str(args.output_dir))
    with claimed(folder):
        if args.cache_from is not None:
            return _cached_files(args, folder)
        if served:
            return _cached_answers(args, folder)
        data = load_data(args)
        check_teacher(args)
        model = load_teacher_model(args)
        parts = {"train": data.train, "eval": data.held_out}
        return {
            name: make_cache(model, rows, folder / name, args, data.tokenizer)
            for name, rows in parts.items()
            if rows is not None
        }


def _cached_answers(args: DistillationConfig, folder: Path) -> dict[str, Manifest]:
    """The caches of what a server answers."""
    if args.cache_kind != "topk":
        raise ValueError(
            f"a served teacher gives its most likely tokens, which make a topk cache, and cache_kind is "
            f"{args.cache_kind}: leave it out"
        )
    args.teacher_top_k = args.cache_top_k
    teacher = ServedTeacher(args)
    data = load_data(args, reads_teacher=False)
    source = ServedSource(teacher, TASKS[args.task], args, data.tokenizer)
    parts = {"train": data.train, "eval": data.held_out}
    return {name: _write(source, rows, folder / name) for name, rows in parts.items() if rows is not None}


def _cached_files(args: DistillationConfig, folder: Path) -> dict[str, Manifest]:
    """The caches of log-probabilities that are in files. Held-out rows may be in none of them."""
    if args.cache_kind != "topk":
        raise ValueError(f"cache_from makes a topk cache, and cache_kind is {args.cache_kind}: leave it out")
    if args.task != "causal_lm":
        raise ValueError(
            f"cache_from has log-probabilities of prompts, which need task: causal_lm, not {args.task}"
        )
    data = load_data(args, reads_teacher=False)
    source = FileSource(open_files(args, data.tokenizer), TASKS[args.task], args, data.tokenizer)
    parts = {"train": (data.train, "train_file"), "eval": (data.held_out, "eval_file")}
    found = {}
    for name, (rows, field) in parts.items():
        if rows is None:
            continue
        if source.holds(rows, field, needed=name == "train"):
            found[name] = _write(source, rows, folder / name)
        else:
            logger.warning("no row of eval_file is in cache_from: there will be no cache for evaluation")
    return found


def write_rows(args: DistillationConfig, path: Path) -> int:
    """Write the tokens of all rows that a cache would hold into a file, for another program to run the
    teacher on them.

    Args:
        args: as for :func:`make_caches`.
        path: the file of JSON lines, each with ``prompt_token_ids``.

    Returns:
        The number of rows.

    Raises:
        ValueError: data that cannot be read, or a file that is there already.
    """
    args = copy.copy(args)
    args.model = args.model or args.teacher  # for its tokenizer
    if path.exists():
        raise ValueError(f"{path} is there already: give another file, or delete it")
    data = load_data(args, reads_teacher=False)
    return cache_file.write_rows({"train": data.train, "eval": data.held_out}, args.task, path)


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
    return _write(source, rows, folder, shard_rows)


def _write(
    source: CacheSource | PositionSource, rows: Any, folder: Path, shard_rows: int = SHARD_ROWS
) -> Manifest:
    """Store a source's distributions at all targets of the rows; resume the directory if it was begun."""
    hashes, targets = survey(rows, source.task, f"hashing {folder.name}")
    if not targets.sum():
        raise ValueError(f"the rows for {folder} have no target: nothing could be learnt from them")
    made_from = {
        **source.description,
        **source.origin(),
        "data": data_digest(hashes),
    }
    bounds = _bounds(targets, source.bytes_per_token, shard_rows)
    notes = {"teacher": source.teacher_name}
    writer = Writer(
        folder, source.kind, made_from, bounds, ".safetensors", notes, why_texts_change(source.tokenizer)
    )
    if source.kind == "hidden" and folder.name != "eval" and writer.manifest.head is None:
        assert isinstance(source, CacheSource)
        writer.put_head(partial(save_file, source.head()))
    missing = writer.missing()
    source.start()
    with tqdm(
        total=len(rows),
        initial=len(rows) - sum(bounds[number][1] - bounds[number][0] for number in missing),
        desc=f"caching {folder.name}",
        unit="row",
        disable=source.args.disable_tqdm,
    ) as bar:
        for number in missing:
            first, last = bounds[number]
            tokens = int(targets[first:last].sum())
            shard = _Shard(hashes[first:last], tokens, tokens * source.entries_per_token)
            held = Held(source.temperatures)
            for part in source.run(rows, first, last, held, bar):
                shard.add(part)
            metadata = None if source.kind == "hidden" else {KEY: held.to_json()}
            writer.put(number, tokens, partial(save_file, shard.tensors(), metadata=metadata))
    if (total := read_held([folder / shard.name for shard in writer.manifest.shards])) is not None:
        writer.note(KEY, total.summary())
    return writer.manifest


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
