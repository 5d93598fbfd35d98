"""Test the summarisation data set of Python's own docstrings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastkd.cli import main
from fastkd.demo import docstrings, text

CODE = '''
class Stack(list):
    """A list that is
    read from its end.

    It is not safe between threads."""

    def peek(self, depth=1) -> object:
        """Return an element without removing it."""
        if depth > len(self):
            raise IndexError("there are fewer elements")
        return self[-depth]

    def short(self):
        """Return."""
        return self[-1]
'''


def test_pairs_of_a_module() -> None:
    (outer, first), (inner, second) = docstrings.pairs(CODE)
    assert first == "A list that is read from its end."
    assert outer.startswith("class Stack(list)\nIt is not safe between threads.")
    assert first not in outer
    assert second == "Return an element without removing it."
    assert inner.startswith("peek(self, depth=1)\nif depth > len(self):") and second not in inner
    assert not list(docstrings.pairs("def broken(:"))


def test_whole_modules_are_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No pair is in both files, and the same seed gives the same files."""
    modules = {name: code for name, code in text.documents().items() if name.startswith(("email/", "json/"))}
    monkeypatch.setattr(text, "documents", lambda: modules)
    assert main(["demo", "--docstrings", str(tmp_path / "one")]) == 0
    assert main(["demo", "--docstrings", str(tmp_path / "two")]) == 0
    names = ("train.jsonl", "validation.jsonl")
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)
    train, held_out = (
        [tuple(json.loads(line).values()) for line in (tmp_path / "one" / name).open()] for name in names
    )
    assert len(train) > len(held_out) > 0
    assert len({*train, *held_out}) == len(train) + len(held_out)
    assert f"{len(train):,} rows in" in capsys.readouterr().out


def test_with_the_packages_beside_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their functions are for training alone, and sources are for a language model to go on from."""
    modules = {name: code for name, code in text.documents().items() if name.startswith("email/")}
    monkeypatch.setattr(text, "documents", lambda: modules)
    monkeypatch.setattr(docstrings, "PACKAGES", ("jinja2", "a_package_that_is_not_there"))
    assert main(["demo", "--docstrings", str(tmp_path / "all"), "--packages"]) == 0
    assert main(["demo", "--docstrings", str(tmp_path / "library")]) == 0

    def rows(folder: str, name: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in (tmp_path / folder / f"{name}.jsonl").open()]

    assert len(rows("all", "train")) > len(rows("library", "train")) + 100
    assert [row["target"] for row in rows("all", "validation")] == [
        row["target"] for row in rows("library", "validation")
    ]
    for name in ("train", "validation"):
        found = rows("all", name)
        assert all(row["source"].endswith(docstrings.ENDING) for row in found)
        assert max(len(row["source"]) for row in found) == docstrings.SHORT_SOURCE + len(docstrings.ENDING)
        assert rows("all", f"text.{name}") == [{"text": row["source"] + row["target"]} for row in found]


def test_packages_without_a_folder_to_write_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--packages"]) != 0
    assert "--docstrings DIR" in capsys.readouterr().err
