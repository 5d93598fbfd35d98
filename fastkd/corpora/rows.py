"""The rows of a file, a generated set or a data set of the hub, under our column names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastkd.corpora.caching import names_the_cache
from fastkd.corpora.known_columns import converted
from fastkd.corpora.local_files import TEXT_COLUMNS, files_of, read_files
from fastkd.corpora.settings import RowSettings
from fastkd.corpora.store import open_generated

if TYPE_CHECKING:
    from datasets import Dataset


@names_the_cache
def load_rows(field: str, args: RowSettings) -> Dataset | None:
    """The rows of ``train_file`` or ``eval_file``; if that is unset, of the split of ``dataset``; None if
    neither is set.

    Raises:
        ValueError: no such file, a format that cannot be read, a file that is damaged, a mapped column that
            does not exist.
    """
    given = getattr(args, field)
    split = args.train_split if field == "train_file" else args.eval_split
    if isinstance(given, str) and (folder := Path(given).expanduser()).is_dir():
        return open_generated(field, folder)  # a generated set already has our names
    if given is not None:
        mapping = args.column_mapping if isinstance(args.column_mapping, dict) else {}
        theirs = [name for ours, name in mapping.items() if ours in TEXT_COLUMNS]
        rows = read_files(field, files_of(field, given), args.packing, theirs)
    elif args.dataset is not None and split is not None:
        rows = _from_hub(args.dataset, split)
    else:
        return None
    return converted(field, mapped(field, rows, args), args)


def _from_hub(name: str, split: str) -> Dataset:
    from datasets import load_dataset

    path, _, configuration = name.partition(":")
    try:
        return load_dataset(path, configuration or None, split=split)
    except Exception as error:  # a download can fail with many kinds of exceptions
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"dataset {name!r} (split {split!r}) could not be loaded: {reason}") from error


def mapped(field: str, rows: Dataset, args: RowSettings) -> Dataset:
    """The rows with the columns that ``column_mapping`` names under our names.

    Raises:
        ValueError: a column that does not exist.
    """
    mapping: Any = args.column_mapping or {}
    if not isinstance(mapping, dict):
        raise ValueError(f"column_mapping must map fastkd's column names to the file's, not {mapping!r}")
    if any("." in str(theirs) and theirs not in rows.column_names for theirs in mapping.values()):
        rows = rows.flatten()  # `translation.de` is the field `de` of the column `translation`
    for ours, theirs in mapping.items():
        if theirs not in rows.column_names:
            # One of the two files may already have our name, and rows to train on need no label.
            if ours in rows.column_names or (ours == "label" and field == "train_file"):
                continue
            raise ValueError(
                f"{field}: column_mapping names {theirs!r}, but the columns are "
                f"{', '.join(rows.column_names)}"
            )
        if ours in rows.column_names and ours != theirs:
            rows = rows.remove_columns(ours)
        rows = rows.rename_column(theirs, ours) if ours != theirs else rows
    return rows
