"""A cache of log-probabilities that another program has written: its source, and the rows to give to it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from fastkd.corpora.local_files import files_of
from fastkd.corpora.logprob_files import LogprobFiles, Position
from fastkd.corpora.store.encoding import Entries, bytes_per_token, packed
from fastkd.corpora.store.fingerprints import encoded_rows, tokenizer_fingerprint
from fastkd.corpora.store.held import Held, masses_at_1, named
from fastkd.corpora.tasks import IGNORE_INDEX, TASKS, Task
from fastkd.directories import writing_to
from fastkd.files import write_parts
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.loading.names import expanded

logger = logging.getLogger(__name__)


class FileSource:
    """Distributions of rows that are in files, as a :class:`CacheSource` has them of a model that is run.

    Args:
        files: the files' log-probabilities.
        task, args, tokenizer: the run's. The number of columns is that of ``teacher``, of which only the
            configuration is read, or else of ``model``.

    Raises:
        ValueError: a model without a configuration.
    """

    kind = "topk"
    temperatures = frozenset({1.0})

    def __init__(self, files: LogprobFiles, task: Task, args: DistillationConfig, tokenizer: Any) -> None:
        self.files, self.task, self.args, self.tokenizer = files, task, args, tokenizer
        self.teacher_name = args.teacher or ", ".join(path.name for path in files.paths)
        self.columns = _columns(args)
        self.entries_per_token = min(files.entries, self.columns)
        if files.renormalised and files.entries < self.columns:
            logger.warning(
                "the %d probabilities of every token sum to 1: if the server has renormalised them "
                "(logprobs_mode: processed_logprobs with top_k or top_p), the student learns that no other "
                "token is possible; ask for raw_logprobs",
                files.entries,
            )
        self.bytes_per_token = bytes_per_token("topk", self.columns, self.entries_per_token, 0, 0, 0)
        self.description = {
            "task": task.name,
            "positions": "logits at i predict label i + 1",
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "columns": self.columns,
            "cache_top_k": self.entries_per_token,
            "temperature": 1.0,
        }

    def origin(self) -> dict[str, Any]:
        """A digest of the files, for the manifest."""
        return {"logprobs": self.files.digest()}

    def start(self) -> None: ...

    def run(self, rows: Any, first: int, last: int, held: Held, bar: Any = None) -> Iterator[Entries]:
        """The stored form of each row, in order; ``held`` counts what the entries hold."""
        for row in encoded_rows(rows, self.task, first, last):
            positions = self.files.find(row["input_ids"].tolist())
            mask = self.task.targets(torch.tensor(row["labels"])[None])[0] != IGNORE_INDEX
            # The last token has no target.
            pairs = zip(positions, mask.tolist()[:-1], strict=True)
            made = self._encoded([one for one, wanted in pairs if wanted])
            held.tokens += len(made.pages)
            held.entries += len(made.low)
            held.add_masses(named(1.0), masses_at_1(made))
            yield made
            if bar is not None:
                bar.update(1)

    def holds(self, rows: Any, field: str, needed: bool) -> bool:
        """Whether the files hold the rows.

        Args:
            rows: encoded rows.
            field: the field that they are from.
            needed: whether it is an error if they hold none of them.

        Raises:
            ValueError: some rows are there and others are not.
        """
        tokens = (row["input_ids"].tolist() for row in encoded_rows(rows, self.task))
        known = [ids in self.files for ids in tokens]
        if all(known) or not (needed or any(known)):
            return all(known)
        raise ValueError(
            f"{known.count(False):,} of the {len(known):,} rows of {field} have no line in cache_from, the "
            f"first of them row {known.index(False)} (counted from 0): it must have exactly the tokens that "
            "fastkd cache --write-rows FILE writes"
        )

    def _encoded(self, positions: list[Position]) -> Entries:
        columns, values = [], []
        for one in positions:
            kept = np.sort(one.columns), one.logprobs[np.argsort(one.columns, kind="stable")]
            if len(kept[0]) and kept[0][-1] >= self.columns:
                raise ValueError(
                    f"cache_from has token {kept[0][-1]}, and the teacher's vocabulary is {self.columns}: "
                    "it is another model's, or teacher names another"
                )
            columns.append(kept[0])
            values.append(kept[1])
        each = torch.tensor([len(part) for part in columns], dtype=torch.long)
        found = torch.from_numpy(np.concatenate([*columns, np.empty(0, np.int64)]))
        logprobs = torch.from_numpy(np.concatenate([*values, np.empty(0)])).half()
        return packed(found, logprobs, each, self.columns, self.entries_per_token)


def open_files(args: DistillationConfig) -> LogprobFiles:
    """The files of ``cache_from``.

    Raises:
        ValueError: a file that is not there or cannot be read.
    """
    return LogprobFiles(files_of("cache_from", args.cache_from or ""), not args.disable_tqdm)


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
