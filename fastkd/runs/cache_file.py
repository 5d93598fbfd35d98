"""A cache of log-probabilities that another program has written: its source, and the rows to give to it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig

from fastkd.corpora.logprobs import Position
from fastkd.corpora.logprobs.opened import open_logprobs
from fastkd.corpora.logprobs.source import LogprobFiles
from fastkd.corpora.store.fingerprints import encoded_rows
from fastkd.corpora.tasks import IGNORE_INDEX, TASKS, Task
from fastkd.directories import writing_to
from fastkd.files import write_parts
from fastkd.runs.cache_positions import PositionSource
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.loading.names import expanded

logger = logging.getLogger(__name__)


class FileSource(PositionSource):
    """Distributions of rows that are in files.

    Args:
        files: the files' log-probabilities.
        task, args, tokenizer: the run's. The number of columns is that of ``teacher``, of which only the
            configuration is read, or else of ``model``.

    Raises:
        ValueError: a model without a configuration.
    """

    def __init__(self, files: LogprobFiles, task: Task, args: DistillationConfig, tokenizer: Any) -> None:
        self.files = files
        name = args.teacher or ", ".join(path.name for path in files.paths)
        super().__init__(task, args, tokenizer, _columns(args), files.entries, name, "cache_from")
        token, place = files.largest
        if token >= self.columns:
            raise ValueError(
                f"{place} has token {token}, and the teacher's vocabulary is {self.columns}: it is another "
                "model's, or teacher names another"
            )
        if files.renormalised and files.entries < self.columns:
            logger.warning(
                "the %d probabilities of every token sum to 1: if the server has renormalised them "
                "(logprobs_mode: processed_logprobs with top_k or top_p), the student learns that no other "
                "token is possible; ask for raw_logprobs",
                files.entries,
            )

    def origin(self) -> dict[str, Any]:
        """A digest of the files, for the manifest."""
        return {"logprobs": self.files.digest()}

    def found(self, rows: Iterator[Any]) -> Iterator[tuple[Any, Sequence[Position]]]:
        """Each row, and its distributions in the files."""
        return ((row, self.files.find(row["input_ids"].tolist())) for row in rows)

    def holds(self, rows: Any, field: str, needed: bool) -> bool:
        """Whether the files hold the rows.

        Args:
            rows: encoded rows.
            field: the field that they are from.
            needed: whether it is an error if they hold none of them.

        Raises:
            ValueError: some rows are there and others are not, or a target has no distribution.
        """
        known = []
        for number, row in enumerate(encoded_rows(rows, self.task)):
            place = self.files.place(row["input_ids"].tolist())
            known.append(place is not None)
            trained = np.flatnonzero(row["labels"][1:] != IGNORE_INDEX) + 1
            if place is not None and len(trained) and trained[0] < place.begin:
                raise ValueError(
                    f"{field}, row {number + 1} is trained from its token {trained[0] + 1} on, and "
                    f"{place.where} has log-probabilities from token {place.begin + 1} on"
                )
        if all(known) or not (needed or any(known)):
            return all(known)
        raise ValueError(
            f"{known.count(False):,} of the {len(known):,} rows of {field} have no line in cache_from, the "
            f"first of them row {known.index(False)} (counted from 0): it must have exactly the tokens that "
            "fastkd cache --write-rows FILE writes (as of the same chat template and max_length)"
        )


def open_files(args: DistillationConfig, tokenizer: Any) -> LogprobFiles:
    """The files of ``cache_from``, whose texts, if it has some, the run's tokenizer encodes.

    Raises:
        ValueError: a file that is not there or cannot be read.
    """
    return open_logprobs("cache_from", args.cache_from or "", tokenizer, args, not args.disable_tqdm)


def write_rows(parts: dict[str, Any], task: str, path: Path) -> int:
    """Write the tokens of all encoded rows as JSON lines, and return their number.

    Args:
        parts: data sets by name (``train``, ``eval``); None for none.
        task: the task of the rows.
        path: the file.
    """
    count = 0

    def lines() -> Iterator[str]:
        nonlocal count
        for name, rows in parts.items():
            for number, row in enumerate(() if rows is None else encoded_rows(rows, TASKS[task])):
                line = {"part": name, "row": number, "prompt_token_ids": row["input_ids"].tolist()}
                yield json.dumps(line) + "\n"
                count += 1

    with writing_to(path.parent):
        write_parts(path, lines())
    return count


def _columns(args: DistillationConfig) -> int:
    field = "teacher" if args.teacher else "model"
    name = args.teacher or args.model
    try:
        config = AutoConfig.from_pretrained(expanded(str(name)))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{field} {name!r} has no configuration that says how many tokens it knows"
        ) from error
    return int(config.get_text_config().vocab_size)
