"""Test the files that people have: what is read as it stands, and what is refused with its file and line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastkd.corpora.local_files import files_of, where
from fastkd.corpora.rows import load_rows
from fastkd.trainer import DistillationConfig

Configuration = Callable[..., DistillationConfig]
TEXTS = ["abc", "dé ☃", "ghi"]
LINES = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS)
CSV = "".join(f"{line}\n" for line in ["text", *TEXTS])
TXT = "".join(f"{text}\n" for text in TEXTS)
BOM = b"\xef\xbb\xbf"


@pytest.fixture
def read(configuration: Configuration, tmp_path: Path) -> Callable[..., list[Any]]:
    """Write files, and return a column of the rows of those that ``train_file`` names."""

    def texts(
        files: dict[str, bytes], train_file: Any = None, column: str = "text", **fields: Any
    ) -> list[Any]:
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(content)
        names = train_file or list(files)
        names = [str(tmp_path / name) for name in ([names] if isinstance(names, str) else names)]
        given = names[0] if isinstance(train_file, str) or len(names) == 1 else names
        rows = load_rows("train_file", configuration(train_file=given, **fields))
        assert rows is not None
        return list(rows[column])

    return texts


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bom.jsonl", BOM + LINES.encode()),
        ("crlf.jsonl", LINES.replace("\n", "\r\n").encode()),
        ("zipped.jsonl.gz", gzip.compress(LINES.encode())),
        ("zipped.csv.gz", gzip.compress(CSV.encode())),
        ("data[1].jsonl", LINES.encode()),
        ("what?*.jsonl", LINES.encode()),
        ("with space.jsonl", LINES.encode()),
        ("list.json", json.dumps(TEXTS).encode()),
        ("below.json", json.dumps({"version": 1, "data": [{"text": text} for text in TEXTS]}).encode()),
        ("bom.csv", BOM + CSV.encode()),
        ("crlf.csv", CSV.replace("\n", "\r\n").encode()),
        ("tabs.tsv", CSV.encode()),
        ("bom.txt", BOM + TXT.encode()),
        ("UPPER.TXT", TXT.encode()),
    ],
)
def test_files_as_they_come(read: Callable[..., list[Any]], name: str, content: bytes) -> None:
    assert read({name: content}) == TEXTS


def test_csv_columns_of_text_are_text(read: Callable[..., list[Any]]) -> None:
    """No number, and no word for a missing value, is taken for anything but what stands there."""
    assert read({"a.csv": b"text\n007\n1.0\nNA\nnull\n"}) == ["007", "1.0", "NA", "null"]
    mapped = {"column_mapping": {"text": "body"}}
    assert read({"b.csv": b"body,id\n007,1\n8,2\n"}, **mapped) == ["007", "8"]


@pytest.mark.parametrize("mark", [";", "\t"])
def test_csv_of_a_spreadsheet(read: Callable[..., list[Any]], mark: str) -> None:
    """Where commas are decimal points, spreadsheets separate columns by semicolons."""
    content = f"text;label\na, b;0,5\nc;1\n".replace(";", mark).encode()  # noqa: F541
    assert read({"sheet.csv": content}) == ["a, b", "c"]


def test_several_files(read: Callable[..., list[Any]], tmp_path: Path) -> None:
    """Files of several formats are read in their order, and a column that one lacks is empty there."""
    files = {
        "a.jsonl": b'{"text": "a", "id": 1}\n',
        "b.csv": b"text\nb\n",
        "more/c.jsonl": b'{"text": "c"}\n',
    }
    assert read(files, ["b.csv", "a.jsonl", "more/*.jsonl"]) == ["b", "a", "c"]
    assert read(files, ["b.csv", "a.jsonl"], "id") == [None, 1]
    assert read(files, "**/*.jsonl") == ["a", "c"]


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files_of("train_file", "~/a.txt") == [tmp_path / "a.txt"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "a.jsonl' is empty"),
        ("a.csv", b"", "a.csv' is empty"),
        ("a.jsonl", BOM + b"\n \n", "a.jsonl' is empty"),
        ("a.csv", b"text\n", "a.csv' .*it has no rows"),
        ("a.jsonl", LINES.encode("utf-16"), "a.jsonl' is in UTF-16: save it as UTF-8"),
        ("a.txt", TXT.encode("utf-16-le"), "a.txt' is in UTF-16"),
        ("a.jsonl", LINES.replace("☃", "").encode("latin-1"), r"is not UTF-8 \(line 2 has the byte 0xe9\)"),
        ("a.csv", CSV.replace("☃", "").encode("latin-1"), r"is not UTF-8 \(line 3 has the byte 0xe9\)"),
        ("a.txt", TXT.replace("☃", "").encode("latin-1"), r"is not UTF-8 \(line 2 has the byte 0xe9\)"),
        ("a.jsonl", b'{"text": "a"}\n{text: b}\n', "is not JSON in line 2, column 2 .*{text: b}"),
        ("a.jsonl", LINES.encode()[:-4], "is not JSON in line 3"),
        ("a.json", b'[\n{"text": "a"},\n{"text": "b"\n', "in line 3"),
        ("a.jsonl", b'{"text": "a\\ud83d"}\n', "half a character .* in line 1"),
        ("a.csv", b"text,label\na,1\nb,c,1\n", "line 3 has 3 fields, and those before it 2"),
        ("a.parquet", b"PAR1", "a.parquet' cannot be read"),
        ("a.jsonl.gz", b"no gzip", "a.jsonl.gz' cannot be opened"),
        ("a.xml", b"<a/>", "a.xml' is not one of .txt, .json"),
    ],
)
def test_faults(read: Callable[..., list[Any]], name: str, content: bytes, message: str) -> None:
    """A file that cannot be read is refused in one sentence, with its name and the line at fault."""
    with pytest.raises(ValueError, match=message) as caught:
        read({name: content})
    assert str(caught.value).startswith("train_file: ") and "\n" not in str(caught.value)


def test_faults_among_several_files(read: Callable[..., list[Any]], tmp_path: Path) -> None:
    files = {"a.jsonl": b'{"text": "a"}\n', "b.jsonl": b"{text}\n", "notes.md": b"notes"}
    with pytest.raises(ValueError, match="b.jsonl' is not JSON in line 1"):
        read(files, "*.jsonl")
    with pytest.raises(ValueError, match="notes.md' is not one of"):
        read(files, "*")
    with pytest.raises(ValueError, match=r"the files differ in the type of label \(int64 and string\)"):
        read(
            {"a.jsonl": b'{"text": "a", "label": 1}\n', "b.csv": b"text,label\na,good\n"},
            ["a.jsonl", "b.csv"],
        )
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none' is an empty directory"):
        read(files, "none")
    with pytest.raises(ValueError, match="there is no file .*none/\\*"):
        read(files, "none/*")
    with pytest.raises(ValueError, match="must be a list of files, but has 3 in it"):
        files_of("train_file", [3])  # type: ignore[list-item]


def test_the_place_of_a_row(
    read: Callable[..., list[Any]], configuration: Configuration, tmp_path: Path
) -> None:
    files = {"a.jsonl": b'{"text": "a"}\n' * 3, "b.jsonl": b'{"text": "b"}\n' * 3}
    read(files)
    args = configuration(train_file=[str(tmp_path / name) for name in files])
    assert where("train_file", 4, args) == f"train_file: '{tmp_path}/b.jsonl', row 2"
    assert where("train_dataset", 4, args) == "train_dataset, row 5"
