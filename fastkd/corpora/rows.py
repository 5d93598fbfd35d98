"""The rows of a file, a generated set or a data set of the hub, under our column names."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastkd.corpora.settings import RowSettings
from fastkd.corpora.store import open_generated

if TYPE_CHECKING:
    from datasets import Dataset

READERS = {".txt": "text", ".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


def load_rows(field: str, args: RowSettings) -> Dataset | None:
    """The rows of ``train_file`` or ``eval_file``; if that is unset, of the split of ``dataset``; None if
    neither is set.

    Raises:
        ValueError: no such file, a format that is not in ``READERS``, a mapped column that does not exist.
    """
    pattern = getattr(args, field)
    split = args.train_split if field == "train_file" else args.eval_split
    if pattern is not None:
        rows = _local(field, pattern, args)
        if Path(pattern).is_dir():  # a generated set already has our names
            return rows
    elif args.dataset is not None and split is not None:
        rows = _from_hub(args.dataset, split)
    else:
        return None
    return _mapped(field, rows, args)


def _local(field: str, pattern: str, args: RowSettings) -> Dataset:
    """The rows of a file, of all files that match a pattern, or of a generated set.

    A ``txt`` file holds one text per line; with ``packing`` the whole file is one text with its line breaks.
    """
    from datasets import load_dataset

    folder = Path(pattern)
    if folder.is_dir():
        return open_generated(field, folder)
    files = sorted(glob.glob(pattern)) or ([pattern] if folder.exists() else [])
    if not files:
        raise ValueError(f"{field}: there is no file {pattern!r}")
    reader = READERS.get(Path(files[0]).suffix.lower())
    if reader is None:
        raise ValueError(f"{field}: {files[0]!r} is not one of {', '.join(READERS)}")
    options: dict[str, Any] = {"sample_by": "document"} if reader == "text" and args.packing else {}
    if reader == "csv":  # pandas would read "None", "NA", "null" and the like as missing
        options = {"keep_default_na": False, "na_values": [""]}
    return load_dataset(reader, data_files=files, split="train", **options)


def _from_hub(name: str, split: str) -> Dataset:
    from datasets import load_dataset

    path, _, configuration = name.partition(":")
    try:
        return load_dataset(path, configuration or None, split=split)
    except Exception as error:  # a download can fail with many kinds of exceptions
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"dataset {name!r} (split {split!r}) could not be loaded: {reason}") from error


def _mapped(field: str, rows: Dataset, args: RowSettings) -> Dataset:
    mapping: Any = args.column_mapping or {}
    if not isinstance(mapping, dict):
        raise ValueError(f"column_mapping must map fastkd's column names to the file's, not {mapping!r}")
    for ours, theirs in mapping.items():
        if theirs not in rows.column_names:
            raise ValueError(
                f"{field}: column_mapping names {theirs!r}, but the columns are "
                f"{', '.join(rows.column_names)}"
            )
        if ours in rows.column_names and ours != theirs:
            rows = rows.remove_columns(ours)
        rows = rows.rename_column(theirs, ours) if ours != theirs else rows
    return rows
