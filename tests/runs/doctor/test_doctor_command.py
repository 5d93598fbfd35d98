"""Test fastkd doctor: its text, its JSON and its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.doctor import SETTINGS

from fastkd.cli import main
from fastkd.trainer import DistillationConfig


def test_an_unquoted_no_is_not_false(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unquoted `no` in YAML, which is parsed as False, is understood as save_strategy 'no'."""
    with Path("run.yaml").open("a") as file:
        file.write("save_strategy: no\n")
    assert main(["doctor", "run.yaml", "--fast", "--max_steps", "5000"]) == 0
    assert "save_strategy: no leaves no checkpoint to resume from" in capsys.readouterr().out


def test_only_some_rows_are_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastkd.corpora.sample.MOST", 10)
    from fastkd.runs.doctor import examined

    assert "10 of 40 rows of train_file" in examined(DistillationConfig(**SETTINGS), fast=True)[1]


def test_the_command(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "run.yaml", "--fast"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("looked at all 40 rows of train_file, all 5 rows of eval_file")
    assert main(["doctor", "run.yaml", "--fast", "--learning_rate", "0", "--temperature", "64"]) == 1
    said = capsys.readouterr().out
    assert said.index("error    learning_rate: 0") < said.index("warning  temperature: 64")
    assert "         -> set it, for example 5e-5" in said
    assert said.strip().split("\n")[-1].startswith("1 error, 1 warning")
    assert max(map(len, said.split("\n"))) <= 100
    assert main(["doctor", "run.yaml", "--fast", "--json", "--learning_rate", "0"]) == 1
    found = json.loads(capsys.readouterr().out)["findings"]
    assert found[0]["severity"] == "error" and found[0]["name"] == "learning_rate"
