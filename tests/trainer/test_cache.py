"""Test caches: they hold what the teacher computed, in few bytes, and damaged or wrong ones are refused."""

from __future__ import annotations

import itertools
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
import stored
import torch
import yaml
from safetensors.torch import load_file, save_file
from stored import MODELS, Crash, crash_at, encoded, files, redigested, settings
from tiny import VOCAB, llama, rows
from torch import nn

from fastkd import SparseTeacher, kd_loss
from fastkd.cli import main
from fastkd.corpora.store import CacheReader, Manifest, Writer
from fastkd.corpora.store.encoding import bytes_per_token, drawn, top
from fastkd.corpora.store.fingerprints import tokenizer_fingerprint
from fastkd.runs import cache as caching
from fastkd.runs.cache import make_cache
from fastkd.trainer import DistillationConfig, DistillationTrainer
from fastkd.trainer.teachers import CachedTeacher

EXACT = {"topk": 2e-3, "hidden": 2e-6}


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a cache of the task and kind, with an evaluation part; each is made only once."""
    made: dict[tuple[str, str], Path] = {}

    def make(task: str = "causal_lm", kind: str = "topk") -> Path:
        if (task, kind) not in made:
            folder = tmp_path_factory.mktemp(f"{task}-{kind}")
            args = settings(task=task, cache_kind=kind, cache_top_k=VOCAB)
            teacher = MODELS[task](1, hidden=24)
            for part, count in (("train", 20), ("eval", 6)):
                data = encoded(task, count)
                make_cache(teacher, data, folder / part, args, stored.tokenizer(), shard_rows=6)
            made[task, kind] = folder
        return made[task, kind]

    return make


@pytest.fixture
def copied(caches: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Return a copy of a cache, which the test may damage."""

    def make(*which: str) -> Path:
        return Path(shutil.copytree(caches(*which), tmp_path / "cache"))

    return make


def trainer(
    teacher: Any, args: DistillationConfig, data: Any = None, held_out: Any = None, tokens: Any = None
) -> DistillationTrainer:
    data = encoded(args.task) if data is None else data
    tokens = tokens or stored.tokenizer()
    return DistillationTrainer(MODELS[args.task](0), teacher, args, None, data, held_out, tokens)


def step(made: DistillationTrainer) -> tuple[float, torch.Tensor]:
    """The loss of the first batch and all gradients."""
    torch.manual_seed(3)
    batch = next(iter(made.get_train_dataloader()))
    made.model.train()
    loss = made.model(**batch)["loss"]
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in made.student.parameters() if p.grad is not None])


# A classifier has neither hidden states in a cache nor a fused loss.
@pytest.mark.parametrize(
    ("task", "kind", "fused"),
    [
        (task, kind, fused)
        for task, kind, fused in itertools.product(MODELS, EXACT, ("auto", "false"))
        if task != "classification" or (kind != "hidden" and fused == "false")
    ],
)
def test_equals_the_live_teacher(caches: Callable[..., Path], task: str, kind: str, fused: str) -> None:
    """Hidden states, and all columns of a top-k cache, give the live teacher's loss and gradients."""
    args = settings(task=task, fused_head=fused, temperature=2.0, kd_ratio=0.8)
    live = step(trainer(MODELS[task](1, hidden=24), args))
    cached = step(trainer(CachedTeacher(caches(task, kind)), args))
    assert cached[0] == pytest.approx(live[0], rel=EXACT[kind])
    assert (cached[1] - live[1]).norm() < EXACT[kind] * live[1].norm()


def test_equals_the_live_teacher_in_16_bits(tmp_path: Path) -> None:
    args = settings(cache_kind="hidden")
    teacher = llama(1, hidden=24).bfloat16()
    made = make_cache(teacher, encoded("causal_lm"), tmp_path / "train", args, stored.tokenizer())
    assert made.bytes / made.tokens < 24 * 2 + 100
    live = step(trainer(teacher, args))
    cached = step(trainer(CachedTeacher(tmp_path), args))
    assert cached[0] == pytest.approx(live[0], rel=1e-2)
    assert (cached[1] - live[1]).norm() < 1e-2 * live[1].norm()


@pytest.mark.parametrize("task", MODELS)
def test_sampled_weights_are_counts(caches: Callable[..., Path], task: str) -> None:
    made = trainer(CachedTeacher(caches(task, "sampled")), settings(task=task))
    batch = next(iter(made.get_train_dataloader()))
    teacher = made._teacher(batch).distribution
    assert isinstance(teacher, SparseTeacher) and teacher.tail == "drop"
    weights = teacher.logprobs.double().exp()
    valid = made.model.task.targets(batch["labels"]) != -100
    torch.testing.assert_close(weights.sum(-1)[valid], torch.ones(int(valid.sum()), dtype=torch.float64))
    assert torch.isneginf(teacher.logprobs[~valid]).all()
    assert (weights * 50 - (weights * 50).round()).abs().max() < 1e-4
    assert math.isfinite(step(made)[0])


def test_sampling_is_unbiased_and_top_k_is_not() -> None:
    """The mean gradient over many sampled caches converges to the whole teacher's; top-k's keeps its bias.

    For one token of a Zipf-like teacher, compare 50 draws with as many top columns as the draws have distinct
    ones.
    """
    torch.manual_seed(0)
    teacher = -1.1 * torch.arange(1, 1001).log()[None]
    student = torch.randn(1, 1000, requires_grad=True)

    def gradient(given: Any) -> torch.Tensor:
        return torch.autograd.grad(kd_loss(student, given), student)[0].flatten()

    def angle(a: torch.Tensor, b: torch.Tensor) -> float:
        return math.degrees(math.acos(min(1.0, float(torch.cosine_similarity(a, b, dim=0)))))

    whole = gradient(teacher)
    draws = torch.Generator().manual_seed(1)
    total, errors, kept, last = torch.zeros_like(whole), {}, 0, 512
    for n in range(1, last + 1):
        entries = drawn(teacher, 50, draws)
        kept += len(entries.low)
        logprobs = torch.from_numpy(np.log(entries.values / 50)).float()[None]
        total += gradient(SparseTeacher(torch.from_numpy(entries.columns())[None], logprobs, "drop"))
        errors[n] = float((total / n - whole).norm() / whole.norm())
    # Since it is unbiased, 64 times as many draws give an eighth of the error.
    assert errors[last] < errors[8] / 5 and errors[last] < 0.04
    best = top(teacher, round(kept / last))
    logprobs = torch.from_numpy(best.values).float()[None]
    largest = gradient(SparseTeacher(torch.from_numpy(best.columns())[None], logprobs))
    assert angle(total, whole) < 2 < angle(largest, whole)


def test_sums_over_positions_are_unbiased_through_the_whole_path(tmp_path: Path) -> None:
    """The mean gradient of caches with different seeds, read from disk, converges to the live teacher's."""
    data = encoded("causal_lm", 4)
    common = {"kd_ratio": 1.0, "per_device_train_batch_size": 4}
    teacher = llama(1, hidden=24)
    whole = step(trainer(llama(1, hidden=24), settings(**common), data))[1]
    total, count = torch.zeros_like(whole), 24
    errors = []
    for seed in range(count):
        args = settings(**common, cache_kind="sampled", seed=seed)
        make_cache(teacher, data, tmp_path / str(seed) / "train", args, stored.tokenizer())
        total += step(trainer(CachedTeacher(tmp_path / str(seed)), settings(**common), data))[1]
        errors.append(float((total / (seed + 1) - whole).norm() / whole.norm()))
    assert errors[-1] < errors[0] / 2.5 and errors[-1] < 0.12


def peaked(vocab: int, seed: int = 0) -> Any:
    """A teacher whose distributions fall off like a power of the rank, as those of language models do."""
    model = llama(seed, vocab=vocab, tied=False)
    generator = torch.Generator().manual_seed(seed)
    model.lm_head = nn.Linear(16, vocab)
    rank = torch.randperm(vocab, generator=generator) + 1
    with torch.no_grad():
        model.lm_head.weight.normal_(0, 0.3, generator=generator)
        model.lm_head.bias.copy_(-1.85 * rank.float().log())
    return model


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


def test_rounding_of_log_probabilities() -> None:
    torch.manual_seed(0)
    logits = torch.randn(20, 3000) * 6
    entries = top(logits, 40)
    exact = logits.double().log_softmax(-1)
    columns = torch.from_numpy(entries.columns()).view(20, 40)
    assert (columns.diff(dim=1) > 0).all()
    assert torch.equal(columns, logits.topk(40).indices.sort(1).values)
    read = torch.from_numpy(entries.values).double().view(20, 40)
    assert (read.exp() - exact.gather(1, columns).exp()).abs().max() < 2e-4


@pytest.mark.parametrize("vocab", [300, 65_536, 65_537, 262_144])
@pytest.mark.parametrize("count", [5, 300])
def test_columns_survive_packing(vocab: int, count: int) -> None:
    """Packing keeps the columns at page borders, with a single page, and with more than 255 entries."""
    logits = torch.randn(3, vocab)
    for column in (0, vocab - 1, min(vocab - 1, 65_535), min(vocab - 1, 65_536)):
        logits[:, column] = 10 + column / vocab
    found = torch.from_numpy(top(logits, count).columns()).view(3, -1)
    assert torch.equal(found, logits.topk(count).indices.sort(1).values)
    entries = drawn(logits, count, torch.Generator().manual_seed(0))
    assert entries.values.sum() == 3 * count and entries.columns().max() < vocab
    assert entries.per_token().sum() == len(entries.low) == len(entries.values)


@pytest.mark.parametrize("kind", ["topk", "sampled", "hidden"])
def test_goes_on_after_a_crash_at_any_write(
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


def test_only_missing_shards_are_made_anew(copied: Callable[..., Path], caplog: Any) -> None:
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
        ({"cache_top_k": 5}, "was begun with another cache_top_k: give another output_dir"),
        ({"cache_kind": "hidden"}, "was begun with another kind, "),
        ({"teacher": 2}, "another teacher_weights:"),
        ({"tokens": stored.tokenizer(letters=[*stored.LETTERS[::-1]])}, "another tokenizer:"),
        ({"data": encoded("causal_lm")[::-1]}, "another data:"),
        ({"data": encoded("causal_lm", 19)}, "another data:"),
    ],
)
def test_does_not_go_on_with_other_settings(
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


def test_leaves_other_directories_alone(tmp_path: Path) -> None:
    (tmp_path / "00000.safetensors").write_text("mine")
    with pytest.raises(ValueError, match="holds other files: give another output_dir"):
        make_cache(llama(1), rows(4), tmp_path, settings(), None)
    assert (tmp_path / "00000.safetensors").read_text() == "mine"


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (
            "topk",
            {"tokens": stored.tokenizer(letters=[*stored.LETTERS[::-1]])},
            "made with another tokenizer",
        ),
        ("topk", {"data": encoded("causal_lm")[::-1]}, "row 0 .counted from 0. of the training data is not"),
        ("topk", {"data": encoded("causal_lm", 19)}, "holds 20 rows and the training data 19"),
        ("topk", {"task": "seq2seq"}, "made for the task causal_lm, not for seq2seq"),
        ("topk", {"divergence": "decoupled"}, "set another, or make a cache with cache_kind"),
        ("sampled", {"divergence": "jsd"}, "set forward_kl, or make a cache with cache_kind: hidden"),
        ("sampled", {"temperature": 2.0}, "sampled cache is known at temperature 1 only: set temperature: 1"),
        ("hidden", {"feature_matches": [{"student": 0, "teacher": 0, "kind": "hidden"}]}, "need a live one"),
    ],
)
def test_refuses_a_run_that_does_not_fit(
    caches: Callable[..., Path], kind: str, change: dict[str, Any], message: str
) -> None:
    change = dict(change)
    data, tokens = change.pop("data", None), change.pop("tokens", None)
    with pytest.raises(ValueError, match=message) as caught:
        trainer(CachedTeacher(caches("causal_lm", kind)), settings(**change), data, tokens=tokens)
    assert "\n" not in str(caught.value)


def test_a_student_of_another_vocabulary_is_refused(caches: Callable[..., Path]) -> None:
    with pytest.raises(
        ValueError, match="40 output columns and the teacher 48, but the tokenizer has 48 tokens"
    ):
        DistillationTrainer(
            llama(0, vocab=40), CachedTeacher(caches()), settings(), None, rows(20), None, stored.tokenizer()
        )


def test_one_changed_row_is_found(caches: Callable[..., Path]) -> None:
    """A changed label, a changed token or another order is found even if all later rows are unchanged."""
    for place, value in (("input_ids", 3), ("labels", -100)):
        data = encoded("causal_lm")
        data[13][place] = [*data[13][place][:-1], value]
        with pytest.raises(ValueError, match="row 13 "):
            trainer(CachedTeacher(caches()), settings(), data)
    packed = [{**row, "position_ids": list(range(len(row["input_ids"])))} for row in encoded("causal_lm")]
    with pytest.raises(ValueError, match="row 0 "):
        trainer(CachedTeacher(caches()), settings(), packed)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
def test_divergences_of_both_tails(caches: Callable[..., Path], divergence: str, tail: str) -> None:
    made = trainer(CachedTeacher(caches()), settings(divergence=divergence, cache_tail=tail))
    assert math.isfinite(step(made)[0])


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
        (lambda c: c["shards"].reverse(), "where they cannot be"),
        (lambda c: c["shards"].pop(1), "holds 14 of 20 rows"),
        (lambda c: c.pop("shards"), "is not a manifest of fastkd"),
        (lambda c: c["shards"][0].pop("sha256"), "is not a manifest of fastkd"),
        (lambda c: c["made_from"].update(teacher_weights="other"), "differ in teacher_weights"),
    ],
)
def test_manifests_that_make_no_sense(copied: Callable[..., Path], change: Any, message: str) -> None:
    folder = copied()
    redigested(folder / "train", change)
    with pytest.raises(ValueError, match=message):
        CachedTeacher(folder)


def test_a_temperature_other_than_one_is_refused(copied: Callable[..., Path]) -> None:
    folder = copied()
    shutil.rmtree(folder / "eval")
    redigested(folder / "train", lambda content: content["made_from"].update(temperature=2.0))
    with pytest.raises(ValueError, match="holds distributions at temperature 2.0"):
        trainer(CachedTeacher(folder), settings())


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


@pytest.mark.parametrize("kind", ["topk", "hidden"])
def test_no_damaged_byte_is_read(copied: Callable[..., Path], kind: str) -> None:
    """A flipped bit, a truncated file or a missing file is refused before the first batch."""
    folder = copied("causal_lm", kind)
    for path in sorted((folder / "train").glob("*.safetensors")):
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) * 3 // 4] ^= 16
        for content in (bytes(flipped), whole[:-1], whole + b"x", None):
            path.unlink()
            if content is not None:
                path.write_bytes(content)
            with pytest.raises(ValueError, match=f"{path.name} is missing, cut or altered: run the command"):
                trainer(CachedTeacher(folder), settings())
            path.write_bytes(whole)
    trainer(CachedTeacher(folder), settings())


def test_evaluation_uses_its_own_part(copied: Callable[..., Path], caplog: Any) -> None:
    folder = copied("causal_lm", "hidden")
    held_out, args = encoded("causal_lm", 6), settings()
    live = trainer(llama(1, hidden=24), args, held_out=held_out).evaluate()
    found = trainer(CachedTeacher(folder), args, held_out=held_out).evaluate()
    for name in ("eval_loss", "eval_kd", "eval_agreement", "eval_teacher_perplexity"):
        assert found[name] == pytest.approx(live[name], rel=1e-5)
    with pytest.raises(ValueError, match="holds 6 rows and the evaluation data 5"):
        trainer(CachedTeacher(folder), args, held_out=held_out[1:])

    shutil.rmtree(folder / "eval")
    with caplog.at_level(logging.WARNING):
        found = trainer(CachedTeacher(folder), args, held_out=held_out).evaluate()
    assert "goes without the teacher" in caplog.text
    assert "eval_kd" not in found
    assert found["eval_loss"] == found["eval_ce"] == pytest.approx(live["eval_ce"], rel=1e-6)


@pytest.mark.parametrize("kind", ["topk", "sampled", "hidden"])
def test_a_wider_teacher_is_cut_to_the_shared_columns(tmp_path: Path, kind: str) -> None:
    """A teacher with a padded head of 64 columns and a vocabulary of 48 is cut as a live teacher is."""
    args = settings(cache_kind=kind, cache_top_k=64, kd_ratio=1.0)
    data = encoded("causal_lm")
    make_cache(llama(1, vocab=64), data, tmp_path / "train", args, stored.tokenizer())
    live = step(trainer(llama(1, vocab=64), args, data))
    made = trainer(CachedTeacher(tmp_path), args, data)
    cached = step(made)
    if kind != "sampled":
        assert cached[0] == pytest.approx(live[0], rel=EXACT[kind])
        return
    batch = next(iter(made.get_train_dataloader()))
    there = ~torch.isneginf(batch["teacher_logprobs"])
    assert batch["teacher_indices"][there].max() < VOCAB
    sums = batch["teacher_logprobs"].exp().sum(-1)[there.any(-1)]
    torch.testing.assert_close(sums, torch.ones_like(sums))
    assert torch.cosine_similarity(cached[1], live[1], dim=0) > 0.9


@pytest.mark.parametrize("kind", ["sampled", "hidden"])
def test_workers_read_the_same(caches: Callable[..., Path], kind: str) -> None:
    def batches(**fields: Any) -> list[dict[str, torch.Tensor]]:
        made = trainer(CachedTeacher(caches("causal_lm", kind)), settings(**fields))
        torch.manual_seed(0)
        return list(made.get_train_dataloader())

    alone, shared = batches(), batches(dataloader_num_workers=2)
    assert len(alone) == len(shared) > 1
    for one, other in zip(alone, shared, strict=True):
        assert one.keys() == other.keys() and any(name.startswith("teacher_") for name in one)
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_a_killed_run_left_beside_is_cleared(tmp_path: Path) -> None:
    """A new run removes the unfinished file of a killed run, and the temporary file of the library that wrote
    it."""
    for _ in range(2):
        left = tmp_path / ".writing-x" / "00000.safetensors"
        left.parent.mkdir()
        left.write_bytes(b"half")
        (left.parent / ".tmpab12").touch()
        Writer(tmp_path, "hidden", {}, [(0, 1)], ".safetensors")
        assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def resident(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().split("\n")
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) * 1024


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


def test_a_teacher_that_gives_nan_is_refused(tmp_path: Path) -> None:
    model = llama(1, tied=False)
    model.model.embed_tokens.weight.data[7] = math.nan
    data = [{"input_ids": [1, 2, 3]}, {"input_ids": [1, 7, 3]}]
    for kind in ("topk", "sampled", "hidden"):
        with pytest.raises(ValueError, match="gives NaN for row 1 "):
            make_cache(model, data, tmp_path / kind, settings(cache_kind=kind), None)


def test_fingerprint_is_of_what_decides_token_ids() -> None:
    one, other = stored.tokenizer(), stored.tokenizer()
    other.pad_token = "A"
    other("abc", truncation=True, max_length=2)
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(other)
    assert tokenizer_fingerprint(one) != tokenizer_fingerprint(stored.tokenizer(end="a"))
    other.add_tokens(["new"])
    assert tokenizer_fingerprint(one) != tokenizer_fingerprint(other)


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
    assert "was begun with another kind" in capsys.readouterr().err
    assert main(["cache", str(config), "--teacher", f"cache:{folder}"]) == 1
    assert "but a cache is made by a model" in capsys.readouterr().err

    shutil.rmtree(tmp_path / "teacher")
    assert main(["distill", str(config), "--teacher", f"cache:{folder}"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["student"]["eval"]["kd"] > 0 and report["student"]["steps"] == 3
    capsys.readouterr()
    assert main(["distill", str(config), "--teacher", f"cache:{folder}", "--max_length", "7"]) == 1
    assert "is not the one that" in capsys.readouterr().err
    assert main(["distill", str(config), "--teacher", f"cache:{tmp_path}"]) == 1
    assert "there is no cache in" in capsys.readouterr().err


def test_classes_are_the_cached_teachers(tmp_path: Path) -> None:
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
def test_two_processes_read_what_one_reads(tmp_path: Path, kind: str) -> None:
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
