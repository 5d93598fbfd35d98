"""Test what a configuration file may look like, and the sentence about each mistake in one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from fastkd.cli import packages, renames
from fastkd.cli.settings import read_settings
from fastkd.trainer.config import DistillationConfig

FIELDS = {field.name for field in dataclasses.fields(DistillationConfig) if field.init}


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """Reads a configuration from its text, with overrides of the command line."""

    def read(text: str | bytes, *overrides: str) -> DistillationConfig:
        path = tmp_path / "run.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_settings([str(path), "--output-dir", str(tmp_path / "out"), *overrides])

    return read


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbflearning_rate: 1e-4\n",
        "learning_rate: 1e-4\r\n",
        "learning_rate: 1E-4",
        'learning_rate: "1e-4"',
        "learning_rate: 0.0001\nteacher: None\nreport_to: null",
    ],
)
def test_reads_a_file_as_editors_write_it(read: Any, text: str | bytes) -> None:
    args = read(text)
    assert args.learning_rate == 1e-4 and args.teacher is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "run.yaml is empty: write `field: value` lines"),
        ("- model: x", "must contain `field: value` lines, not a list"),
        ("seed: 1\nmodel: x\nseed: 2", "line 3: seed is given in line 1 already"),
        ("model: x\n\tseed: 1", "line 2: .*indent with spaces, not with tabs"),
        ("seed: 1\nmodel: [x", "run.yaml is not valid YAML, line 2"),
        ("model: x\nmodel_init: scratch".encode("utf-16"), "is not UTF-8 text"),
        ("training:\n  seed: 1\n  lr: 2", "fields are not grouped, so write seed without indentation"),
        ("max_steps:", "max_steps is empty: give it a value, or leave out the line"),
        ("class_names: [no, yes]", "class_names holds False .*: put quotes around yes, no"),
        ("save_strategy: sometimes", "save_strategy must be .*not 'sometimes'"),
        ("lr_scheduler_type: cosin", "lr_scheduler_type must be .*cosine.*not 'cosin'"),
        ("seed: many", "seed must be int, not 'many'"),
        ("gradient_accumulation_steps: 0", "gradient_accumulation_steps must be at least 1, not 0"),
        ("per_device_train_batch_size: 0", "per_device_train_batch_size must be at least 1"),
        ("learning_rate: .nan", "learning_rate must be a number from 0, not nan"),
        ("peft_config: r8", "peft_config must be a mapping such as .*not 'r8'"),
        ("teacher_model_init_kwargs: [bfloat16]", "teacher_model_init_kwargs must be a mapping"),
        ("deepspeed: zero2", "deepspeed is 'zero2': give a mapping, or the path of a JSON file"),
        ("group_by_length: true", "'group_by_length': set train_sampling_strategy: group_by_length"),
        ("evaluation_strategy: steps", "'evaluation_strategy': its name here is 'eval_strategy'"),
        ("max_new_tokens: 20", "its name here is 'max_completion_length'"),
        ("temprature: 2", "unknown field 'temprature'; did you mean 'temperature'"),
        ("qqqq: 2", "unknown field 'qqqq'; fastkd distill --help lists the fields"),
        ("temprature: 2\nlora_r: 8", "unknown fields: 'temprature'; did you mean .*, and 'lora_r': set peft"),
    ],
)
def test_names_a_mistake(read: Any, text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(text)


def test_paths_may_begin_with_the_home_directory(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    args = read("model: ~/student\nteacher: ~/teacher\ntrain_file: ~/a.jsonl")
    assert (args.model, args.teacher) == ("/home/somebody/student", "/home/somebody/teacher")
    assert args.train_file == "/home/somebody/a.jsonl"


def test_the_order_of_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("seed: 1")
    with pytest.raises(ValueError, match="before the fields: --control has taken it as its value"):
        read_settings(["--control", str(path)])
    with pytest.raises(ValueError, match="there is no option '-o'"):
        read_settings([str(path), "-o", "out"])
    with pytest.raises(ValueError, match="is a directory: give the configuration file in it"):
        read_settings([str(tmp_path)])


def test_renamed_fields_lead_to_fields() -> None:
    assert set(renames.FIELDS.values()) <= FIELDS
    assert not set(renames.ELSEWHERE) & FIELDS
    new = {"activation_checkpointing", "activation_checkpointing_kwargs"}  # fields since transformers 5.20
    assert set(renames.FIELDS) & FIELDS <= new


@pytest.mark.parametrize(
    ("name", "module", "command"),
    [
        ("datasets", "datasets", "pip install 'fastkd[train]'"),
        ("peft.tuners", "peft.tuners", "pip install 'fastkd[peft]'"),
        ("sklearn", "sklearn", "pip install scikit-learn"),
        (
            "The 'deepspeed>=0.9.3' distribution was not found and is required by this application. ",
            "deepspeed",
            "pip install deepspeed",
        ),
    ],
)
def test_a_missing_package_names_the_command(name: str, module: str, command: str) -> None:
    missing = packages.missing_package(ModuleNotFoundError("no", name=name))
    assert missing == module and packages.remedy(module) == command


def test_a_missing_part_of_fastkd_is_no_package() -> None:
    assert packages.missing_package(ModuleNotFoundError("no", name="fastkd._C")) is None
    assert packages.missing_package(ModuleNotFoundError("no name")) is None


def test_the_extras_are_those_of_the_project() -> None:
    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(packages.EXTRAS) <= set(project["optional-dependencies"])
