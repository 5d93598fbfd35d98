"""Test fastkd cache: it resumes after a crash, needs few bytes and little memory, and refuses changes."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from support import stored
from support.caches import peaked, resident
from support.stored import Crash, crash_at, encoded, files, settings
from support.tiny import VOCAB, llama, rows

from fastkd.cli import main
from fastkd.corpora.store import CacheReader, Manifest
from fastkd.corpora.store.encoding import bytes_per_token
from fastkd.runs import cache as caching
from fastkd.runs.cache import make_cache
from fastkd.trainer.teachers import CachedTeacher


@pytest.mark.parametrize(("kind", "most"), [("topk", 140), ("sampled", 45)])
def test_bytes_per_token(tmp_path: Path, kind: str, most: int) -> None:
    """Limit the bytes per token of everything in the directory, for V = 151,936. The documentation states the
    figure for 100,000 tokens."""
    data = rows(12, vocab=1000, shortest=30, longest=32)
    made = make_cache(peaked(151_936), data, tmp_path, settings(cache_kind=kind), None)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert made.tokens == sum(len(row["input_ids"]) - 1 for row in data)
    # With so few tokens, a manifest of 2 kB adds 6 bytes to each.
    manifest = (tmp_path / "manifest.json").stat().st_size
    header = 1000
    assert (size - manifest - header) / made.tokens < most
    stated = json.loads((tmp_path / "manifest.json").read_text())["bytes_per_token"]
    assert stated == pytest.approx((size - manifest) / made.tokens, abs=0.01)
    assert stated == pytest.approx(bytes_per_token(kind, 151_936, 32, 50, 16, 4), rel=0.35)


@pytest.mark.parametrize("kind", ["topk", "sampled", "hidden"])
def test_resumes_after_a_crash_at_any_write(
    caches: Callable[..., Path], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = settings(cache_kind=kind, cache_top_k=VOCAB)
    teacher, data, tokens = llama(1, hidden=24), encoded("causal_lm"), stored.tokenizer()
    expected = files(caches("causal_lm", kind) / "train")
    moment, crashed = 1, 0
    while True:
        folder = tmp_path / str(moment) / "train"
        try:
            with crash_at(moment, monkeypatch):
                make_cache(teacher, data, folder, args, tokens, shard_rows=6)
            break
        except Crash:
            crashed += 1
        if (folder / "manifest.json").exists() and not Manifest.read(folder).complete:
            with pytest.raises(ValueError, match="of 20 rows: run the same fastkd cache again"):
                CacheReader(folder)
        make_cache(teacher, data, folder, args, tokens, shard_rows=6)
        assert files(folder) == expected
        moment += 3
    assert crashed >= 10


def test_only_damaged_shards_are_replaced(copied: Callable[..., Path], caplog: Any) -> None:
    """A damaged shard is replaced; whole ones are not touched."""
    folder = copied() / "train"
    before, times = files(folder), {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    shard = folder / "00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    args = settings(cache_top_k=VOCAB)
    with caplog.at_level(logging.WARNING):
        make_cache(llama(1, hidden=24), encoded("causal_lm"), folder, args, stored.tokenizer(), shard_rows=6)
    assert "1 damaged shards" in caplog.text
    assert files(folder) == before
    assert times[folder / "00000.safetensors"] == (folder / "00000.safetensors").stat().st_mtime_ns


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"cache_top_k": 5},
            r"begun with other settings, cache_top_k \(48, now 5\): give another output_dir",
        ),
        ({"cache_kind": "hidden"}, "begun with other settings, kind, "),
        ({"teacher": 2}, "other settings, teacher_weights:"),
        ({"tokens": stored.tokenizer(letters=[*stored.LETTERS[::-1]])}, "other settings, tokenizer:"),
        ({"data": encoded("causal_lm")[::-1]}, "other settings, data:"),
        ({"data": encoded("causal_lm", 19)}, "other settings, data:"),
    ],
)
def test_does_not_resume_with_other_settings(
    copied: Callable[..., Path], change: dict[str, Any], message: str
) -> None:
    folder = copied() / "train"
    change = dict(change)
    before = files(folder)
    teacher = llama(change.pop("teacher", 1), hidden=24)
    data = change.pop("data", encoded("causal_lm"))
    tokens = change.pop("tokens", stored.tokenizer())
    args = settings(**{"cache_top_k": VOCAB, **change})
    with pytest.raises(ValueError, match=message):
        make_cache(teacher, data, folder, args, tokens, shard_rows=6)
    assert files(folder) == before


def test_does_not_touch_other_directories(tmp_path: Path) -> None:
    (tmp_path / "00000.safetensors").write_text("mine")
    with pytest.raises(ValueError, match="holds other files: give another output_dir"):
        make_cache(llama(1), rows(4), tmp_path, settings(), None)
    assert (tmp_path / "00000.safetensors").read_text() == "mine"


def test_a_teacher_that_gives_nan_is_refused(tmp_path: Path) -> None:
    model = llama(1, tied=False)
    model.model.embed_tokens.weight.data[7] = math.nan
    data = [{"input_ids": [1, 2, 3]}, {"input_ids": [1, 7, 3]}]
    for kind in ("topk", "sampled", "hidden"):
        with pytest.raises(ValueError, match="gives NaN for row 1 "):
            make_cache(model, data, tmp_path / kind, settings(cache_kind=kind), None)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`fastkd cache`, then `fastkd distill` without the teacher's files; a mistake gives one sentence."""
    given = stored.workplace(tmp_path)
    given |= {"max_steps": 3, "save_strategy": "no", "eval_file": given["train_file"]}
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({**given, "output_dir": str(tmp_path / "out")}))
    folder = str(tmp_path / "cached")

    assert main(["cache", str(config), "--kind", "sampled", "--output-dir", folder]) == 0
    said = capsys.readouterr().out
    assert "bytes per token (sampled" in said and f"teacher: cache:{folder}" in said
    assert main(["cache", str(config), "--kind=topk", "--output-dir", folder]) == 1
    assert "begun with other settings, kind" in capsys.readouterr().err
    assert main(["cache", str(config), "--teacher", f"cache:{folder}"]) == 1
    assert "but a cache is made by a model" in capsys.readouterr().err

    shutil.rmtree(tmp_path / "teacher")
    assert main(["distill", str(config), "--teacher", f"cache:{folder}"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["student"]["eval"]["kd"] > 0 and report["student"]["steps"] == 3
    capsys.readouterr()
    other = ["--output-dir", str(tmp_path / "other")]
    assert main(["distill", str(config), "--teacher", f"cache:{folder}", "--max_length", "7", *other]) == 1
    assert "24 of 24 rows of the training data are not in" in capsys.readouterr().err
    assert main(["distill", str(config), "--teacher", f"cache:{tmp_path}", *other]) == 1
    assert "there is no cache in" in capsys.readouterr().err


def test_class_names_come_from_the_cached_teacher(tmp_path: Path) -> None:
    """The data only numbers its classes, and the teacher names them; a run from the cache has these names."""
    given = stored.workplace(tmp_path)
    names = [f"class {i}" for i in range(5)]
    for name, seed in (("teacher", 1), ("student", 0)):
        model = stored.bert(seed)
        if name == "teacher":
            model.config.id2label = dict(enumerate(names))
            model.config.label2id = {name: i for i, name in enumerate(names)}
        model.save_pretrained(tmp_path / name)
    lines = [json.dumps({"text": f"ab{'c' * i}", "label": i % 5}) for i in range(12)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    config = tmp_path / "run.yaml"
    given |= {"task": "classification", "max_steps": 2, "save_strategy": "no", "cache_top_k": 3}
    config.write_text(yaml.safe_dump({**given, "output_dir": str(tmp_path / "out")}))
    folder = str(tmp_path / "cached")
    assert main(["cache", str(config), "--output-dir", folder]) == 0
    assert CachedTeacher(Path(folder)).made_from["class_names"] == names
    assert main(["distill", str(config), "--teacher", f"cache:{folder}"]) == 0
    assert list(json.loads((tmp_path / "out" / "config.json").read_text())["id2label"].values()) == names


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sampled", "hidden"])
def test_two_processes_train_like_one_from_a_cache(tmp_path: Path, kind: str) -> None:
    """Two processes with half the batch size train the same weights as one process."""
    given = stored.workplace(tmp_path)
    given |= {"max_steps": 4, "save_strategy": "no", "cache_kind": kind, "dataloader_num_workers": 1}
    given |= {"learning_rate": 1e-2, "teacher": str(tmp_path / "teacher"), "report_to": "none"}
    config, folder = tmp_path / "run.yaml", str(tmp_path / "cached")
    config.write_text(yaml.safe_dump({**given, "output_dir": folder}))
    assert main(["cache", str(config)]) == 0
    common = ["distill", str(config), "--teacher", f"cache:{folder}"]
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    assert main([*common, "--output-dir", one, "--per_device_train_batch_size", "8"]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    root = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": root}
    arguments = [*launch, "fastkd.cli", *common, "--output-dir", two]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    weights = [load_file(Path(place) / "model.safetensors") for place in (one, two)]
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-4, atol=1e-5)


def test_shards_close_at_rows_tokens_or_bytes() -> None:
    def sizes(targets: list[int], bytes_each: float, rows: int) -> list[int]:
        found = caching._bounds(np.array(targets), bytes_each, rows)
        assert [first for first, _ in found[1:]] == [last for _, last in found[:-1]]
        assert found[0][0] == 0 and found[-1][1] == len(targets)
        return [last - first for first, last in found]

    assert sizes([1] * 10, 1.0, 4) == [4, 4, 2]
    assert sizes([caching.SHARD_TOKENS // 2] * 5, 1.0, 100) == [2, 2, 1]
    assert sizes([2, 2, 2, 2, 2], caching.SHARD_BYTES / 4, 100) == [2, 2, 1]
    assert sizes([10**9] * 3, 1.0, 100) == [1, 1, 1]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_does_not_grow_while_caching(tmp_path: Path) -> None:
    """Memory stays flat while rows are collected: a row's result must not be allocated next to a large
    temporary tensor, whose part of the heap it would pin. This once took 380 MiB."""
    data, model = rows(1000, vocab=1000, shortest=31, longest=31), peaked(40_000)
    make_cache(model, data[:20], tmp_path / "a", settings(), None)
    before = resident("RssAnon")
    make_cache(model, data, tmp_path / "b", settings(), None)
    assert resident("RssAnon") - before < 64 * 2**20
