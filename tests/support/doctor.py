"""A healthy configuration with its models and data, for tests that damage it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.tiny import llama
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fastkd.corpora.tasks import TASKS
from fastkd.runs.doctor import Finding, examine
from fastkd.trainer import DistillationConfig
from fastkd.trainer.loading import load_tokenizer

WORDS = ["<end>", "<unk>", "<pad>", *(f"w{i}" for i in range(45))]


def tokenizer(words: list[str] = WORDS, **specials: str) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    given = {"eos_token": "<end>", "unk_token": "<unk>", "pad_token": "<pad>", **specials}
    return PreTrainedTokenizerFast(tokenizer_object=made, **given)


def row(i: int) -> dict[str, str]:
    """A row whose answer repeats the prompt's words, after a space."""
    words = [f"w{(i * 7 + j) % 45}" for j in range(2 + i % 4)]
    return {"prompt": " ".join([*words, f"w{i % 45}"]), "completion": " " + " ".join(words)}


def write_rows(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


SETTINGS = {
    "model": "student",
    "model_init": "scratch",
    "teacher": "teacher",
    "train_file": "train.jsonl",
    "eval_file": "eval.jsonl",
    "max_length": 32,
    "per_device_train_batch_size": 4,
    "output_dir": "out",
    "use_cpu": True,
}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a student without weights, a teacher, their tokenizer, and data without faults."""
    folder = tmp_path_factory.mktemp("healthy")
    for name, hidden in (("student", 16), ("teacher", 24)):
        model = llama(hidden=hidden)
        model.config.pad_token_id = 2
        (model if name == "teacher" else model.config).save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_rows("train.jsonl", [row(i) for i in range(40)])
        write_rows("eval.jsonl", [row(i) for i in range(40, 45)])
        Path("run.yaml").write_text(yaml.safe_dump(SETTINGS))
    return folder


@pytest.fixture
def place(healthy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the healthy folder, which the test may damage."""
    folder = shutil.copytree(healthy, tmp_path / "place")
    monkeypatch.chdir(folder)
    return folder


def look(fast: bool = True, **fields: Any) -> dict[str, Finding]:
    return {f.name: f for f in examine(DistillationConfig(**{**SETTINGS, **fields}), fast)}


def edit(path: str, **fields: Any) -> None:
    config = json.loads(Path(path).read_text())
    Path(path).write_text(json.dumps({**config, **fields}))


@pytest.fixture(scope="module")
def healthy_findings(healthy: Path) -> Iterator[dict[str, Finding]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(healthy)
        yield look()


def learned(hidden: int, steps: int) -> Any:
    """A model that was trained on the rows for some steps."""
    model = llama(hidden=hidden)
    args = DistillationConfig(**SETTINGS)
    task, words = TASKS["causal_lm"], load_tokenizer(args)
    encoded = [task.encode(row(i), ("prompt", "completion"), words, args) for i in range(45)]
    batch = task.collate([made for made in encoded if made is not None], 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model
