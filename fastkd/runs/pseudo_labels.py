"""Pseudo-labels: a classifier's labels of texts, as a data set that any student can be trained on.

A text keeps the label that the data gives it, since that was given by someone who knew; all others get the
teacher's. ``beam`` (the default mode) takes the likeliest class, or each label with a probability above 1/2;
``sample`` draws from the teacher's distribution at ``sampling_temperature``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Sequence as Several, Value
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from fastkd.corpora.labels import MULTI_LABEL, REGRESSION, has_names, is_unlabelled, label_column
from fastkd.corpora.local_files import where
from fastkd.corpora.store import Manifest
from fastkd.corpora.store.fingerprints import tokenizer_fingerprint
from fastkd.corpora.tasks import TASKS
from fastkd.corpora.tasks.base import Collator, Row
from fastkd.runs.classes import check_teacher, settle_classes
from fastkd.runs.shards import (
    REFERENCE,
    SHARD_ROWS,
    MadeBy,
    counted,
    refuse_columns,
    row_hash,
    seed_of,
    write_set,
)
from fastkd.trainer.classes import in_order
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.row_limits import check_rows
from fastkd.trainer.sides import name_padding, padding_token
from fastkd.trainer.teachers import LiveTeacher

PROBABILITIES, PREDICTION = "teacher_probabilities", "teacher_prediction"
# Counts of a manifest's notes: rows with the teacher's label, with the data's own, and with none because the
# teacher was not sure; and how many of the data's own the teacher would have given too.
COUNTS = ("labelled", "kept", "unsure", "agreed")


def check_mode(args: DistillationConfig) -> None:
    """Raise a ``ValueError`` if ``generation_mode`` is one of text alone, or ``min_probability`` is none."""
    if not 0 <= args.min_probability <= 1:
        raise ValueError(f"min_probability must be from 0 to 1, not {args.min_probability}")
    if args.generation_mode == "interpolate":
        raise ValueError(
            "generation_mode: interpolate chooses among answers of text: a classifier's labels are beam (the "
            "likeliest) or sample"
        )


def settled(args: DistillationConfig, rows: Dataset) -> DistillationConfig:
    """The settings with the run's problem and classes, which are those of a distillation on the same data.

    Raises:
        ValueError: data without texts, data and models that do not go together, or options that a regression
            does not have.
    """
    args = copy.copy(args)
    args.model = args.model or args.teacher
    TASKS["classification"].layout_of(rows.column_names, "train_file")
    settle_classes(args, rows)
    check_teacher(args)
    if args.problem_type == REGRESSION and (args.generation_mode == "sample" or args.min_probability):
        raise ValueError(
            "a regression predicts numbers and no probabilities: leave out generation_mode: sample and "
            "min_probability"
        )
    return args


def label_rows(
    teacher: PreTrainedModel,
    tokenizer: Any,
    rows: Dataset,
    folder: Path,
    args: DistillationConfig,
    shard_rows: int = SHARD_ROWS,
) -> Manifest:
    """Write the teacher's labels of raw rows, with its probabilities, as a generated set.

    An existing directory is resumed; at most its unfinished shard is lost. Rows without text are left out.
    The column ``label`` holds the data's own label or else the teacher's, as a name where the classes have
    names; ``reference`` the data's own (if the data has the column); ``teacher_probabilities`` the teacher's
    probability of each class in the order of ``class_names``, always at temperature 1, or for a regression
    ``teacher_prediction`` its numbers. All other columns are kept.

    Args:
        teacher: frozen in place and put into eval mode.
        tokenizer: the teacher's.
        args: settings whose classes :func:`settled` has found.
        shard_rows: number of rows in a shard.

    Raises:
        ValueError: rows that the task refuses, columns that the set adds, a directory that was begun with
            other settings.
    """
    task = TASKS["classification"]
    refuse_columns(rows, REFERENCE, PROBABILITIES, PREDICTION)
    made = task.prepared(rows)
    layout = task.layout_of(made.column_names, "train_file")
    numbers, asked = [], []
    for number, row in enumerate(tqdm(made, desc="tokenizing", disable=args.disable_tqdm, delay=2)):
        try:
            encoded = task.read(row, layout, tokenizer, args)
        except ValueError as error:
            raise ValueError(f"{where('train_file', number, args)}: {error}") from error
        if encoded:
            numbers.append(number)
            asked.append(encoded[0])
    if not asked:
        raise ValueError("train_file holds no text")
    labeller = _Labeller(teacher, tokenizer, args)
    check_rows(asked, "train_file", task, {"teacher": teacher}, tokenizer)
    hashes = [row_hash(made[number]) for number in numbers]
    sampled = args.generation_mode == "sample"
    made_from = {
        "task": task.name,
        "generation_mode": args.generation_mode,
        **({"sampling_temperature": args.sampling_temperature, "seed": args.seed} if sampled else {}),
        "min_probability": args.min_probability,
        "problem_type": args.problem_type,
        "class_names": args.class_names,
        "max_length": args.max_length,
        "tokenizer": tokenizer_fingerprint(tokenizer),
    }
    labeller.to(args.device)

    def shard(first: int, last: int, bar: Any) -> tuple[Dataset, int, dict[str, Any]]:
        part = asked[first:last]
        given = [row["labels"] for row in part]
        labels, counts = labeller.shard(
            made.select(numbers[first:last]), given, labeller.scores(part, bar), first
        )
        return labels, sum(len(row["input_ids"]) for row in part), counts

    made_by = MadeBy.model(teacher, args)
    written = write_set(folder, made_from, hashes, shard, args, made_by, "labelling", shard_rows)
    return counted(written, COUNTS)


class _Labeller:
    """A teacher in the order of the run's classes, and the form in which its labels are written."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any, args: DistillationConfig) -> None:
        self.args, self.problem = args, args.problem_type
        self.names = list(args.class_names or [])
        config: Any = model.config
        config.problem_type = args.problem_type
        self.collate = Collator(TASKS["classification"], padding_token(model, tokenizer))
        name_padding({"teacher": model}, self.collate.pad_token_id)
        self.model = model
        self.reader = in_order(LiveTeacher(model, self.collate.task, fused=False), self.names, self.problem)

    def to(self, device: torch.device) -> None:
        self.reader.to(device)

    def scores(self, rows: Sequence[Row], bar: Any) -> Tensor:
        """``(rows, classes)`` logits, or the numbers of a regression, in float64 on the CPU. Each shard
        begins a new batch, so that a resumed run makes the same batches.
        """
        size, found = self.args.per_device_eval_batch_size, []
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            batch = {name: x.to(self.model.device) for name, x in self.collate(part).items()}
            output = self.reader(batch)
            assert output is not None and isinstance(output.distribution, Tensor)
            logits = output.distribution.detach()
            # Each label of a multi-label model is a softmax over 0 and its logit.
            logits = logits[..., 1] if self.problem == MULTI_LABEL else logits
            found.append(logits.reshape(len(part), -1).cpu().double())
            bar.update(len(part))
        made = torch.cat(found)
        if made.isnan().any():
            raise ValueError(
                "the teacher gives NaN: check its weights, or load it in another dtype with "
                "teacher_model_init_kwargs"
            )
        return made

    def shard(
        self, rows: Dataset, given: Sequence[Any], scores: Tensor, first: int
    ) -> tuple[Dataset, dict[str, int]]:
        """The rows with their labels, and counts of them.

        Args:
            rows: the raw rows.
            given: the data's own labels, encoded.
            scores: as :meth:`scores` returns them.
            first: number of the first row among all.
        """
        said, sure, beside = self._labels(scores, first)
        own = [not is_unlabelled(label) for label in given]
        labels = [
            mine if kept else theirs if certain else None
            for mine, kept, theirs, certain in zip(given, own, said, sure, strict=True)
        ]
        column = label_column(rows.column_names)
        columns = {name: rows[name][:] for name in rows.column_names}
        features = rows.features.copy()
        if column is not None:
            columns[REFERENCE] = [
                self._written(label) if kept else None for label, kept in zip(given, own, strict=True)
            ]
            features[REFERENCE] = self._feature()
        columns[column or "label"] = [None if label is None else self._written(label) for label in labels]
        features[column or "label"] = self._feature()
        name = PREDICTION if self.problem == REGRESSION else PROBABILITIES
        columns[name], features[name] = beside.tolist(), Several(Value("float32"))
        counts = {
            "labelled": sum(certain and not kept for certain, kept in zip(sure, own, strict=True)),
            "kept": sum(own),
            "unsure": sum(not certain and not kept for certain, kept in zip(sure, own, strict=True)),
            "agreed": sum(
                kept and mine == theirs for kept, mine, theirs in zip(own, given, said, strict=True)
            ),
        }
        return Dataset.from_dict(columns, features=features), counts

    def _labels(self, scores: Tensor, first: int) -> tuple[list[Any], list[bool], Tensor]:
        """The teacher's label of each row as the task encodes it, whether it is likely enough, and the
        probabilities (or numbers) themselves.
        """
        if self.problem == REGRESSION:
            numbers = scores.float()
            made = numbers[:, 0] if numbers.shape[1] == 1 else numbers
            return made.tolist(), [True] * len(scores), numbers
        generator = torch.Generator().manual_seed(seed_of(self.args.seed, first))
        sampled, cold = self.args.generation_mode == "sample", scores / self.args.sampling_temperature
        if self.problem == MULTI_LABEL:
            likely = scores.sigmoid()
            chosen = cold.sigmoid().bernoulli(generator=generator) if sampled else scores > 0
            each = torch.where(chosen.bool(), likely, 1 - likely).amin(-1)
            return chosen.long().tolist(), (each >= self.args.min_probability).tolist(), likely
        likely = scores.softmax(-1)
        drawn = cold.softmax(-1).multinomial(1, generator=generator)[:, 0] if sampled else scores.argmax(-1)
        each = likely.gather(-1, drawn[:, None])[:, 0]
        return drawn.tolist(), (each >= self.args.min_probability).tolist(), likely

    def _written(self, label: Any) -> Any:
        """A label as a file holds it: names where the classes have them."""
        named = has_names(self.names)
        if self.problem == REGRESSION:
            return label
        if self.problem == MULTI_LABEL:
            if not named:
                return [float(part) for part in label]
            return [name for name, part in zip(self.names, label, strict=True) if part == 1]
        return self.names[label] if named else label

    def _feature(self) -> Any:
        """The type of the column of labels."""
        named = has_names(self.names)
        if self.problem == REGRESSION:
            return Value("float64") if len(self.names) < 2 else Several(Value("float64"))
        if self.problem == MULTI_LABEL:
            return Several(Value("string" if named else "float64"))
        return Value("string" if named else "int64")
