"""The files that ``train_file`` and ``eval_file`` name, and the rows in them."""

from __future__ import annotations

import contextlib
import glob
import logging
import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastkd.corpora.file_faults import COMPRESSED, check_readable, fault, first_line
from fastkd.corpora.pairs import PAIRED_COLUMNS

if TYPE_CHECKING:
    from datasets import Dataset

READERS = {
    ".txt": "text",
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
# Columns that hold text. In a CSV file, which has no types, they are read as they stand there: `007` and `NA`
# are not turned into the number 7 and a missing value.
TEXT_COLUMNS = (
    *("text", "prompt", "completion", "source", "target", "instruction", "input", "output"),
    *(name for name in PAIRED_COLUMNS if name != "text"),
)
_KNOWN = (*TEXT_COLUMNS, "messages", "conversations")
# A file of more than these is not looked up, since the lengths of all files before it would have to be read.
_LOOKED_UP = 100


logger = logging.getLogger(__name__)


class _Reader(NamedTuple):
    """One way to read a file: the name of a builder of `datasets`, and its options."""

    name: str
    options: tuple[tuple[str, Any], ...]


def files_of(field: str, given: str | Sequence[str]) -> list[Path]:
    """The files of a path, of a pattern such as ``data/*.jsonl``, or of a list of both; ``~`` is the home.

    A name that exists is that file, even if it could be read as a pattern (``data[1].jsonl``).

    Raises:
        ValueError: a name without a file, or a directory.
    """
    names = [given] if isinstance(given, (str, Path)) else given
    if not isinstance(names, (list, tuple)) or not names:
        raise ValueError(f"{field} must be a file, a pattern or a list of them, not {given!r}")
    found: list[Path] = []
    for name in names:
        if not isinstance(name, (str, Path)):
            raise ValueError(f"{field} must be a list of files, but has {name!r} in it")
        path = Path(name).expanduser()
        if path.is_dir():
            raise ValueError(f"{field}: {directory_message(path)}")
        matched = (
            [path]
            if path.is_file()
            else [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        )
        files = [match for match in matched if match.is_file()]
        if not files:
            raise ValueError(f"{field}: there is no file {str(name)!r}")
        found += [file for file in files if file not in found]
    return found


def directory_message(folder: Path) -> str:
    """A sentence that says how to name the files of a directory that is no generated set."""
    endings = sorted({path.suffix for path in folder.glob("*") if path.suffix.lower() in READERS})
    if not any(folder.iterdir()):
        return f"{str(folder)!r} is an empty directory"
    example = f"'{folder}/*{endings[0] if endings else '.jsonl'}'"
    return (
        f"{str(folder)!r} is a directory without a manifest.json: give a file, a pattern such as {example}, "
        "a list of files, or what fastkd generate wrote"
    )


def read_files(
    field: str, files: Sequence[Path], packing: bool = False, text_columns: Sequence[str] = ()
) -> Dataset:
    """The rows of all files, in their order. A column that only some of them have is empty in the others.

    A ``txt`` file holds one text per line; with ``packing`` the whole file is one text with its line breaks.

    Args:
        field: name of the setting, for error messages.
        text_columns: further columns of CSV files that hold text, besides ``TEXT_COLUMNS``.

    Raises:
        ValueError: an unknown format, a file that is empty or cannot be read, or files whose columns differ
            in their types.
    """
    text = (*TEXT_COLUMNS, *text_columns)
    readers = [_reader(field, file, packing, text) for file in files]
    with _quiet():
        parts = []
        for reader, group in groupby(zip(readers, files, strict=True), key=lambda pair: pair[0]):
            parts += _read_group(field, reader, [file for _, file in group])
    return _joined(field, parts)


def where(field: str, row: int, args: Any) -> str:
    """The place of a row, counted from 0, as a phrase in which rows are counted from 1.

    Args:
        field: ``train_file`` or ``eval_file``; any other name stands for itself.
        args: the settings that name the files of ``field``.
    """
    given = getattr(args, field, None) if field in ("train_file", "eval_file") else None
    if not given or (isinstance(given, str) and Path(given).expanduser().is_dir()):
        return f"{field}, row {row + 1}"
    files = files_of(field, given)
    if 1 < len(files) <= _LOOKED_UP:
        for file in files:
            length = len(read_files(field, [file], args.packing))
            if row < length:
                return f"{field}: {str(file)!r}, row {row + 1}"
            row -= length
    return f"{field}: {str(files[0])!r}, row {row + 1}" if len(files) == 1 else f"{field}, row {row + 1}"


def _reader(field: str, file: Path, packing: bool, text: tuple[str, ...]) -> _Reader:
    ending = _ending(file)
    name = READERS.get(ending)
    if name is None:
        raise ValueError(f"{field}: {str(file)!r} is not one of {', '.join(READERS)}")
    if name != "parquet":
        try:
            check_readable(file)
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from error
    options: dict[str, Any] = {}
    if name == "text":
        options = {"encoding": "utf-8-sig"}  # a byte-order mark is not part of the text
        if packing:
            options["sample_by"] = "document"
    elif name == "csv":
        options = {
            "sep": "\t" if ending == ".tsv" else _separator(file),
            "keep_default_na": False,
            "na_values": ("",),
            "text": text,
        }
    return _Reader(name, tuple(options.items()))


def _ending(file: Path) -> str:
    """The suffix that says the format: that of ``rows.jsonl.gz`` is ``.jsonl``."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _separator(file: Path) -> str:
    """The separator of a CSV file: spreadsheets write semicolons or tabs where commas are decimal points."""
    header = first_line(file)
    return next((mark for mark in (",", ";", "\t") if mark in header), ",")


def _read_group(field: str, reader: _Reader, files: list[Path]) -> list[Dataset]:
    """The rows of files of one format: together if their columns agree, else file by file."""
    try:
        rows = _load(reader, files)
        if len(files) == 1 and (below := _rows_below(files[0], rows)) is not None:
            logger.warning("%s: the rows of '%s' are those under %r", field, files[0], below)
            rows = _load(reader._replace(options=(("field", below),)), files)
        _check_text(rows)
        return [rows]
    except Exception as error:  # a reader can fail with many kinds of exceptions
        if isinstance(error, OSError) and error.filename not in (None, *map(str, files)):
            raise  # the directory in which `datasets` keeps rows, and not the data, is at fault
        if len(files) == 1:
            raise ValueError(f"{field}: {fault(files[0], reader.name, error)}") from error
    return [part for file in files for part in _read_group(field, reader, [file])]


def _load(reader: _Reader, files: list[Path]) -> Dataset:
    from datasets import load_dataset

    options = dict(reader.options)
    if text := options.pop("text", None):
        options["converters"] = dict.fromkeys(text, str)
        options["na_values"] = list(options["na_values"])
    # The loader reads file names as patterns.
    names = [glob.escape(os.path.abspath(file)) for file in files]
    return load_dataset(reader.name, data_files=names, split="train", **options)


def _rows_below(file: Path, rows: Dataset) -> str | None:
    """The key under which a JSON file has its list of rows, as ``data`` in ``{"version": 1, "data": [...]}``;
    None if the file is a list of rows itself.
    """
    if _ending(file) != ".json" or len(rows) != 1 or not set(rows.column_names).isdisjoint(_KNOWN):
        return None
    lists = [name for name, kind in rows.features.items() if isinstance(getattr(kind, "feature", None), dict)]
    return lists[0] if len(lists) == 1 else None


def _check_text(rows: Dataset) -> None:
    """Raise an error if text is not UTF-8, which the JSON reader does not check."""
    for column in rows.data.table.columns:
        for chunk in column.chunks:
            chunk.validate(full=True)


def _with_plain_text(rows: Dataset) -> Dataset:
    """The rows with all text in the same type: the reader of CSV files has another than that of JSON."""
    from datasets import Value

    large = [name for name, kind in rows.features.items() if getattr(kind, "dtype", None) == "large_string"]
    if not large:
        return rows
    features = rows.features.copy()
    features.update({name: Value("string") for name in large})
    return rows.cast(features)


def _joined(field: str, parts: list[Dataset]) -> Dataset:
    from datasets import concatenate_datasets

    if len(parts) == 1:
        return parts[0]
    parts = [_with_plain_text(part) for part in parts]
    try:
        return concatenate_datasets(parts)
    except ValueError as error:
        kinds: dict[str, set[str]] = {}
        for part in parts:
            for name, kind in part.features.items():
                kinds.setdefault(name, set()).add(str(getattr(kind, "dtype", kind)))
        mixed = [f"{name} ({' and '.join(sorted(found))})" for name, found in kinds.items() if len(found) > 1]
        reason = f"differ in the type of {', '.join(mixed)}" if mixed else f"do not fit together: {error}"
        raise ValueError(f"{field}: the files {reason}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the loader, whose log repeats the error that this module reports."""
    from datasets.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)
