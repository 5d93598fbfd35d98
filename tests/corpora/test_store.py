"""Test directories of shards: altered and damaged ones are refused, and reading needs little memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import stored
from support.caches import resident
from support.stored import redigested

from fastkd.corpora.store import CacheReader, Writer
from fastkd.corpora.store.fingerprints import tokenizer_fingerprint
from fastkd.trainer.teachers import CachedTeacher


@pytest.mark.parametrize(
    "name", ["../eval/00000.safetensors", "/etc/passwd", "..", "00000.pt", "a/00000.parquet"]
)
def test_paths_cannot_leave_the_directory(copied: Callable[..., Path], name: str) -> None:
    folder = copied()
    redigested(folder / "train", lambda content: content["shards"][0].update(name=name))
    with pytest.raises(ValueError, match="is not a file of this directory"):
        CachedTeacher(folder)


def test_links_cannot_leave_the_directory(copied: Callable[..., Path]) -> None:
    folder = copied()
    shard = folder / "train" / "00000.safetensors"
    shard.rename(folder / "elsewhere")
    shard.symlink_to(folder / "elsewhere")
    with pytest.raises(ValueError, match="is not a file of this directory"):
        CachedTeacher(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format=2), "is of format 2, written by fastkd .* reads format 1: make"),
        (lambda c: c.update(kind="pickle"), "unknown kind 'pickle'"),
        (lambda c: c["shards"].reverse(), "out of order"),
        (lambda c: c["shards"].pop(1), "holds 14 of 20 rows"),
        (lambda c: c.pop("shards"), "is not a manifest of fastkd"),
        (lambda c: c["shards"][0].pop("sha256"), "is not a manifest of fastkd"),
        (lambda c: c["made_from"].update(teacher_weights="other"), "differ in teacher_weights"),
    ],
)
def test_inconsistent_manifests_are_refused(copied: Callable[..., Path], change: Any, message: str) -> None:
    folder = copied()
    redigested(folder / "train", change)
    with pytest.raises(ValueError, match=message):
        CachedTeacher(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}'])
def test_broken_manifests(copied: Callable[..., Path], text: str) -> None:
    folder = copied()
    (folder / "train" / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match="manifest"):
        CachedTeacher(folder)


def test_an_altered_manifest_is_refused(copied: Callable[..., Path]) -> None:
    path = copied() / "train" / "manifest.json"
    path.write_text(path.read_text().replace('"rows": 20', '"rows": 21'))
    with pytest.raises(ValueError, match="was altered after it was written"):
        CachedTeacher(path.parents[1])


def test_temporary_files_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    """A new run removes the unfinished file of a killed run, and the temporary file of the library that wrote
    it."""
    for _ in range(2):
        left = tmp_path / ".writing-x" / "00000.safetensors"
        left.parent.mkdir()
        left.write_bytes(b"half")
        (left.parent / ".tmpab12").touch()
        Writer(tmp_path, "hidden", {}, [(0, 1)], ".safetensors")
        assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_does_not_grow_with_the_cache(tmp_path: Path) -> None:
    """A cache of 96 MiB in 48 shards is read with less than a quarter of it in memory at any time."""
    shards, per_shard, width = 48, 16, 512
    bounds = [(i * per_shard, (i + 1) * per_shard) for i in range(shards)]
    writer = Writer(tmp_path, "hidden", {}, bounds, ".safetensors")
    tokens = 2**21 // per_shard // width // 4
    for number in range(shards):
        offsets = torch.arange(per_shard + 1)[:, None] * torch.tensor([tokens, 0])
        made = {
            "hidden": torch.full((per_shard * tokens, width), float(number)),
            "offsets": offsets,
            "row_hashes": torch.zeros(per_shard, 16, dtype=torch.uint8),
        }
        writer.put(number, per_shard * tokens, lambda path, made=made: save_file(made, path))
    reader = CacheReader(tmp_path)
    reader.verify()
    reader.hidden(0)
    before = resident("RssAnon"), resident("VmRSS")
    most = 0
    order = torch.randperm(shards * per_shard, generator=torch.Generator().manual_seed(0)).tolist()
    for row in order:
        assert reader.hidden(row).unique().tolist() == [row // per_shard]
        most = max(most, resident("VmRSS") - before[1])
    assert resident("RssAnon") - before[0] < 8 * 2**20
    assert most < 24 * 2**20


def test_reading_before_checking_is_refused(caches: Callable[..., Path]) -> None:
    with pytest.raises(RuntimeError, match="verify"):
        CacheReader(caches() / "train").entries(0)


def test_the_fingerprint_covers_all_that_decides_token_ids() -> None:
    one, other = stored.tokenizer(), stored.tokenizer()
    other.pad_token = "A"
    other("abc", truncation=True, max_length=2)
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(other)
    assert tokenizer_fingerprint(one) != tokenizer_fingerprint(stored.tokenizer(end="a"))
    other.add_tokens(["new"])
    assert tokenizer_fingerprint(one) != tokenizer_fingerprint(other)
