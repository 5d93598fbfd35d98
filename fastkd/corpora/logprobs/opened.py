"""Opens files with log-probabilities: their layout is told from the first line, or from the columns."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fastkd.corpora.caching import names_the_cache
from fastkd.corpora.known_columns import converted
from fastkd.corpora.local_files import files_of, read_files
from fastkd.corpora.logprobs import axolotl, distillkit
from fastkd.corpora.logprobs.axolotl import AxolotlFiles, Encoder
from fastkd.corpora.logprobs.distillkit import DistillKitFiles
from fastkd.corpora.logprobs.source import LogprobFiles
from fastkd.corpora.logprobs.vllm_files import VllmFiles
from fastkd.corpora.rows import mapped
from fastkd.corpora.settings import RowSettings, TaskSettings
from fastkd.corpora.tasks import TASKS

if TYPE_CHECKING:
    from datasets import Dataset

# Kinds of files that a directory is searched for.
_ENDINGS = (".parquet", ".jsonl", ".json")
# A limit above any row, so that rows are encoded whole.
_ALL = 2**31 - 1
# Bytes of a first line that are read to tell the layout.
_HEAD = 2**26


class Settings(TaskSettings, RowSettings, Protocol):
    """All settings that decide the tokens of a row."""


@names_the_cache
def open_logprobs(
    field: str, given: str | Sequence[str], tokenizer: Any, args: Settings, progress: bool = False
) -> LogprobFiles:
    """Files in any of the layouts, or a directory of them.

    Args:
        field: the setting that names them, for messages.
        given: files, patterns or directories.
        tokenizer, args: those of the run, which encode the rows of layouts that have text.
        progress: whether a bar is shown while they are read.

    Raises:
        ValueError: a file that is not there or cannot be read, or has none of the layouts.
    """
    paths = _found(field, given)
    if all(path.suffix != ".parquet" for path in paths) and not _has_columns(paths[0]):
        return VllmFiles(paths, progress)
    rows = read_files(field, paths)
    names = list(rows.column_names)
    if "input_ids" in names and any(set(form) <= set(names) for form in distillkit.FORMS):
        return DistillKitFiles(field, paths, rows, args.max_length, progress)
    column = _logprobs_of(rows)
    if column is None:
        raise ValueError(
            f"{field} has the columns {', '.join(names)}, and the layouts that are known are those of vLLM "
            "(prompt_token_ids and prompt_logprobs), of axolotl (lists of {token, logprob}, or "
            f"{axolotl.IDS} beside lists of numbers) and of DistillKit (input_ids with "
            f"{' or '.join('+'.join(form) for form in distillkit.FORMS)})"
        )
    encode = _no_text if "input_ids" in names else _encoder(field, rows, column, tokenizer, args)
    return AxolotlFiles(field, paths, rows, column, encode, args.max_length, progress)


def _found(field: str, given: str | Sequence[str]) -> list[Path]:
    """The files, with those of each directory and the directories in it in its place."""
    found: list[Path] = []
    for name in [given] if isinstance(given, (str, Path)) else list(given):
        if (folder := Path(name).expanduser()).is_dir():
            inside = sorted(path for path in folder.rglob("*") if path.suffix in _ENDINGS)
            if not inside:
                raise ValueError(f"{field}: {str(folder)!r} has no file of {', '.join(_ENDINGS)}")
            found += inside
        else:
            found += files_of(field, [name])
    if not found:
        raise ValueError(f"{field} names no file")
    return list(dict.fromkeys(found))


def _has_columns(path: Path) -> bool:
    """Whether a file's first row is that of a data set, and not an answer of vLLM."""
    if path.suffix not in (".jsonl", ".json"):
        return False
    try:
        with path.open("rb") as file:
            line = next((line for line in iter(lambda: file.readline(_HEAD), b"") if line.strip()), b"")
        first = json.loads(line)
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and not {"prompt_token_ids", "prompt_logprobs", "choices"} & set(first)


def _logprobs_of(rows: Dataset) -> str | None:
    """The column with axolotl's log-probabilities, which a data set may call as it likes; None without one.

    With several, it is the one that is called ``logprobs`` or ``target_logprobs``.
    """
    import pyarrow as pa

    def entry(kind: Any) -> Any:
        for _ in range(2):
            if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
                return None
            kind = kind.value_type
        return kind

    kinds = {one.name: entry(one.type) for one in rows.features.arrow_schema}
    found = [
        name
        for name, kind in kinds.items()
        if kind is not None
        and (
            (pa.types.is_struct(kind) and {"token", "logprob"} <= {one.name for one in kind})
            or (pa.types.is_floating(kind) and axolotl.IDS in kinds)
        )
    ]
    known = [name for name in ("logprobs", "target_logprobs") if name in found]
    return next(iter([*known, *found]), None)


def _no_text(number: int) -> None:
    return None


def _encoder(field: str, rows: Dataset, column: str, tokenizer: Any, args: Settings) -> Encoder:
    """Encodes the text of a row as the run encodes it, and as if it had room for all of it."""
    task = TASKS["causal_lm"]
    beside = [name for name in (column, axolotl.IDS, "target_mask") if name in rows.column_names]
    text = converted(field, mapped(field, rows.remove_columns(beside), args), args)
    layout = task.layout_of(text.column_names, field)
    text = text.select_columns(task.columns_read(layout, text.column_names))
    whole = copy.copy(args)
    whole.max_length, whole.packing = _ALL, False

    def encode(number: int) -> tuple[list[int], int | None] | None:
        row = text[number]
        made = task.read(row, layout, tokenizer, whole)
        if not made:
            return None
        ids = list(made[-1]["input_ids"])
        kept = task.read(row, layout, tokenizer, args)
        if not kept or kept[-1]["prompt_cut"]:
            return ids, None
        return ids, len(kept[-1]["input_ids"])

    return encode
