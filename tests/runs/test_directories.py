"""Test the errors of a disk: each names the setting that can be changed."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import stored

from fastkd import directories, files
from fastkd.corpora.rows import load_rows
from fastkd.directories import claimed, require_writable, unwritable, writing_to


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "out"):
        with (
            pytest.raises(OSError, match="output_dir '.*' cannot be written .*: give another output_dir"),
            claimed(folder),
        ):
            pass
        with pytest.raises(OSError, match="output_dir '.*' cannot be written .*: give another output_dir"):
            require_writable(folder)
        assert "is a file" in str(unwritable(folder))
    assert unwritable(tmp_path / "new" / "out") is None
    assert not (tmp_path / "new").exists()


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python names it; the errors of torch and safetensors have to be understood."""

    out = tmp_path / "out"

    class SafetensorError(Exception):
        pass

    torch_errors = [
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
        RuntimeError("basic_ios::clear: iostream error"),
    ]
    full: list[Exception] = [
        OSError(errno.ENOSPC, "No space left on device", str(out / "model")),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ]
    for error in full:
        with pytest.raises(OSError, match="no space is left on the disk of output_dir"), writing_to(out):
            raise error
    for error in torch_errors:
        with pytest.raises(OSError, match=f"cannot be written .{re.escape(str(error))}"), writing_to(out):
            raise error
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4096))
    for error in torch_errors:
        with pytest.raises(OSError, match="no space is left"), writing_to(out):
            raise error


def test_other_errors_pass(tmp_path: Path) -> None:
    others: list[Exception] = [
        RuntimeError("a shape is wrong"),
        ValueError("a field is wrong"),
        PermissionError(errno.EACCES, "Permission denied", "/elsewhere/data.jsonl"),
        OSError(errno.ENOSPC, "No space left on device"),  # of a disk that is not this one
        FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "out")),
    ]
    for error in others:
        with pytest.raises(type(error)) as raised, writing_to(tmp_path / "out"):
            raise error
        assert raised.value is error


def test_a_process_may_claim_a_directory_twice(tmp_path: Path) -> None:
    with claimed(tmp_path), claimed(tmp_path / "." / "..", field="x"), claimed(tmp_path):
        assert str(tmp_path) in directories._held
    assert directories._held == set()


def test_the_cache_of_datasets_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    (tmp_path / "file").write_text("")
    (tmp_path / "data.jsonl").write_text('{"text": "ab"}\n')
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "file" / "datasets"))
    with pytest.raises(OSError, match="HF_HOME '.*' cannot be written .*: give another HF_HOME"):
        load_rows("train_file", stored.settings(train_file=str(tmp_path / "data.jsonl")))


def test_json_has_no_nan(tmp_path: Path) -> None:
    value = {"a": math.nan, "b": [math.inf, 1.5, (-math.inf,)], "c": {"d": "NaN"}}
    files.write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text()) == {
        "a": None, "b": [None, 1.5, [None]], "c": {"d": "NaN"},
    }  # fmt: skip


def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_text(tmp_path / "x.json", "text")
    assert not list(tmp_path.iterdir())
