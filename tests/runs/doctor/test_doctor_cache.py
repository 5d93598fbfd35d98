"""Test the doctor's findings about a cache that does not fit the configuration."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.doctor import SETTINGS, WORDS, look, row, tokenizer, write_rows
from support.tiny import llama

from fastkd.runs.doctor import Finding
from fastkd.trainer import DistillationConfig


@pytest.fixture
def cached(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Finding]]:
    """Make a cache of the healthy data; return a function that checks a configuration which reads it."""
    from fastkd.runs.cache import make_caches

    llama(hidden=24).save_pretrained("teacher")
    make_caches(DistillationConfig(**{**SETTINGS, "output_dir": "stored", "disable_tqdm": True}))
    return lambda **fields: look(**{"teacher": "cache:stored", "fast": False, **fields})


def test_a_cache_that_fits(cached: Callable[..., dict[str, Finding]]) -> None:
    assert not set(cached()) - {"gpu_unused", "gpu_unseen"}


@pytest.mark.parametrize(
    ("fields", "name", "words"),
    [
        ({"divergence": "decoupled"}, "cache", "divergence: decoupled does not work with a topk cache"),
        ({"task": "seq2seq"}, "cache", "was made for the task causal_lm"),
        ({"max_length": 6}, "cache_order", "length limits have changed"),
    ],
)
def test_a_cache_of_other_settings(
    cached: Callable[..., dict[str, Finding]], fields: dict[str, Any], name: str, words: str
) -> None:
    finding = cached(**fields)[name]
    assert finding.severity == "error" and words in finding.found


def test_a_cache_of_other_data(cached: Callable[..., dict[str, Finding]]) -> None:
    rows = [row(i) for i in range(40)]
    write_rows("train.jsonl", rows[:-1])
    assert "holds 40 rows and train_file 39" in cached()["cache_rows"].found
    write_rows("train.jsonl", [*rows[:7], rows[8], rows[7], *rows[9:]])
    assert cached()["cache_order"].found.startswith("row 7 (counted from 0) of train_file")


def test_a_cache_of_another_tokenizer(cached: Callable[..., dict[str, Finding]]) -> None:
    words = list(WORDS)
    words[10:12] = reversed(words[10:12])
    tokenizer(words).save_pretrained("student")
    assert "another tokenizer" in cached()["cache"].found


def test_a_damaged_cache(cached: Callable[..., dict[str, Finding]]) -> None:
    shard = next(Path("stored/train").glob("0*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert "missing, cut or altered" in cached()["cache_damaged"].found
    assert "cache_damaged" not in cached(fast=True)


def test_a_cache_without_its_evaluation_part(cached: Callable[..., dict[str, Finding]]) -> None:
    shutil.rmtree("stored/eval")
    assert cached()["cache_without_eval"].severity == "note"
