"""Test that an option which a command would ignore is refused, and that a field in a file is not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from fastkd.cli import main
from fastkd.cli.fields_read import COMMANDS, READ_BY
from fastkd.cli.settings import read_settings
from fastkd.trainer import DistillationConfig

FOREIGN = [
    (command, field) for field, readers in READ_BY.items() for command in COMMANDS if command not in readers
]
OPTIONS = {"kind", "mode", "fast", "processes", "no_time", "no_weights", "json", "from", "write_rows"}


def test_the_table_names_fields_and_commands() -> None:
    fields = {field.name for field in dataclasses.fields(DistillationConfig)}
    assert set(READ_BY) - fields == OPTIONS
    assert {name for readers in READ_BY.values() for name in readers} == set(COMMANDS)
    for command, field in (
        ("distill", "num_beams"), ("cache", "num_beams"), ("distill", "cache_top_k"),
        ("distill", "generation_mode"), ("generate", "control"), ("cache", "cache_tail"),
        ("train", "cache_tail"), ("train", "temperature"),
    ):  # fmt: skip
        assert ((command, field) in FOREIGN) == ((command, field) != ("distill", "num_beams"))


@pytest.mark.parametrize(("command", "field"), FOREIGN)
@pytest.mark.parametrize("spelled", ["--{}=1", "--{}"])
def test_a_foreign_option_is_refused(
    command: str, field: str, spelled: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error comes before the file is read, and names the commands that do read the option."""
    option = spelled.format(field.replace("_", "-"))
    assert main([command, "none.yaml", option]) == 1
    said = capsys.readouterr().err
    assert f"fastkd {command} does not read --{field.replace('_', '-')}, which fastkd " in said
    assert all(f"fastkd {name}" in said for name in READ_BY[field]) and said.count("\n") == 1


def test_a_file_may_serve_several_commands(tmp_path: Path) -> None:
    """Every field is allowed in a file, whichever command reads the file."""
    path = tmp_path / "run.yaml"
    fields = {"cache_tail": "renormalize", "num_beams": 2, "generation_mode": "sample", "control": True}
    path.write_text(json.dumps({**fields, "output_dir": "out", "use_cpu": True}))
    args = read_settings([str(path)])
    assert {name: getattr(args, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "teacher is unset: leave it out, or set teacher: cache:DIR"),
        (["--teacher", "some"], "teacher is some: leave it out, or set teacher: cache:DIR"),
    ],
)
@pytest.mark.parametrize("command", ["distill", "evaluate", "doctor", "estimate"])
def test_a_tail_without_a_cache(
    command: str, given: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps({"output_dir": "out", "use_cpu": True}))
    assert main([command, str(path), "--cache-tail", "bucket", *given]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "field", "other"), [("topk", "cache_samples", "sampled"), ("sampled", "cache_top_k", "topk")]
)
def test_entries_of_another_kind(
    kind: str, field: str, other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps({"output_dir": "out", "use_cpu": True}))
    assert main(["cache", str(path), "--kind", kind, f"--{field}", "9"]) == 1
    assert (
        f"--{field} is for a {other} cache, and this one is {kind}: leave it out" in capsys.readouterr().err
    )
