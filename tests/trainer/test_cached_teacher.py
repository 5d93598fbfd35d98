"""Test that a cached teacher gives the loss of the live one, and refuses a run that it does not fit."""

from __future__ import annotations

import itertools
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from support import stored
from support.caches import EXACT, step, trainer
from support.chats import talk
from support.stored import MODELS, encoded, redigested, settings
from support.tiny import VOCAB, llama, rows

from fastkd import SparseTeacher
from fastkd.corpora.tasks import TASKS
from fastkd.runs.cache import make_cache
from fastkd.trainer import DistillationTrainer
from fastkd.trainer.teachers import CachedTeacher


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


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (
            "topk",
            {"tokens": stored.tokenizer(letters=[*stored.LETTERS[::-1]])},
            "made with another tokenizer",
        ),
        ("topk", {"data": encoded("causal_lm", 19)}, "19 of 19 rows of the training data are not in .*train"),
        ("topk", {"task": "seq2seq"}, "made for the task causal_lm, not for seq2seq"),
        ("topk", {"divergence": "decoupled"}, "set another, or make a cache with cache_kind"),
        ("sampled", {"divergence": "jsd"}, "set forward_kl, or make a cache with cache_kind: hidden"),
        ("sampled", {"temperature": 2.0}, "sampled cache is known at temperature 1 only: set temperature: 1"),
        ("hidden", {"feature_matches": [{"student": 0, "teacher": 0, "kind": "hidden"}]}, "not a cache"),
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
    with pytest.raises(ValueError, match="the tokenizer has 48 tokens and the student 40 columns"):
        DistillationTrainer(
            llama(0, vocab=40), CachedTeacher(caches()), settings(), None, rows(20), None, stored.tokenizer()
        )


def test_one_changed_row_is_found(caches: Callable[..., Path]) -> None:
    """A changed label or a changed token is found even if all other rows are unchanged."""
    for place, value in (("input_ids", 3), ("labels", -100)):
        data = encoded("causal_lm")
        data[13][place] = [*data[13][place][:-1], value]
        with pytest.raises(ValueError, match="row 13 "):
            trainer(CachedTeacher(caches()), settings(), data)
    packed = [{**row, "position_ids": list(range(len(row["input_ids"])))} for row in encoded("causal_lm")]
    with pytest.raises(ValueError, match="row 0 "):
        trainer(CachedTeacher(caches()), settings(), packed)


@pytest.mark.parametrize("kind", ["topk", "hidden"])
def test_rows_in_another_order(caches: Callable[..., Path], kind: str, caplog: Any) -> None:
    """A filtered, shuffled data set with a repeated row gives the live teacher's loss and gradients."""
    data = encoded("causal_lm")
    data = [data[i] for i in (7, 3, 19, 0, 3, 11, 12, 5)]
    live = step(trainer(llama(1, hidden=24), settings(), data))
    cached = step(trainer(CachedTeacher(caches("causal_lm", kind)), settings(), data))
    assert cached[0] == pytest.approx(live[0], rel=EXACT[kind])
    assert (cached[1] - live[1]).norm() < EXACT[kind] * live[1].norm()
    assert "7 of its 20 rows are read, in the order of the training data" in caplog.text


def test_padded_rows_are_found(caches: Callable[..., Path]) -> None:
    """Rows that were padded elsewhere are the rows of the cache, and give their loss."""
    bare = encoded("causal_lm")
    longest = max(len(row["input_ids"]) for row in bare)
    padded = []
    for row in bare:
        gap = longest - len(row["input_ids"])
        padded.append(
            {
                "input_ids": [0] * gap + row["input_ids"],
                "labels": [-100] * gap + row["labels"],
                "attention_mask": [0] * gap + [1] * len(row["input_ids"]),
            }
        )
    one, other = (step(trainer(CachedTeacher(caches()), settings(), data)) for data in (bare, padded))
    assert one[0] == other[0] and torch.equal(one[1], other[1])


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("tail", ["renormalize", "bucket"])
def test_divergences_of_both_tails(caches: Callable[..., Path], divergence: str, tail: str) -> None:
    made = trainer(CachedTeacher(caches()), settings(divergence=divergence, cache_tail=tail))
    assert math.isfinite(step(made)[0])


def test_a_temperature_other_than_one_is_refused(copied: Callable[..., Path]) -> None:
    folder = copied()
    shutil.rmtree(folder / "eval")
    redigested(folder / "train", lambda content: content["made_from"].update(temperature=2.0))
    with pytest.raises(ValueError, match="holds distributions at temperature 2.0"):
        trainer(CachedTeacher(folder), settings())


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
    with pytest.raises(ValueError, match="20 of 20 rows of the evaluation data are not in .*eval"):
        trainer(CachedTeacher(folder), args, held_out=encoded("causal_lm"))

    shutil.rmtree(folder / "eval")
    with caplog.at_level(logging.WARNING):
        found = trainer(CachedTeacher(folder), args, held_out=held_out).evaluate()
    assert "is evaluated without the teacher" in caplog.text
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


def test_a_template_that_prints_the_date_is_named_as_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of yesterday's text are not those of today's; the cache is refused, and so is going on with it."""
    tokenizer = stored.tokenizer()
    rows = Dataset.from_list([{"messages": talk("ab", letter)} for letter in "cdefgh"])
    args = settings()

    def encoded_on(day: str) -> Any:
        monkeypatch.setattr(tokenizer, "chat_template", day + stored.CHAT + "{# strftime_now #}")
        return TASKS["causal_lm"].tokenize(rows, tokenizer, args, "train_file")

    yesterday, today = encoded_on("monday "), encoded_on("tuesday ")
    make_cache(llama(1, hidden=24), yesterday, tmp_path / "train", args, tokenizer)
    trainer(CachedTeacher(tmp_path), args, yesterday, tokens=tokenizer)
    with pytest.raises(ValueError, match="chat template prints the date with strftime_now"):
        trainer(CachedTeacher(tmp_path), args, today, tokens=tokenizer)
    with pytest.raises(ValueError, match="begun with other settings, data .* prints the date"):
        make_cache(llama(1, hidden=24), today, tmp_path / "train", args, tokenizer)
    monkeypatch.setattr(tokenizer, "chat_template", stored.CHAT)
    with pytest.raises(ValueError) as caught:
        trainer(CachedTeacher(tmp_path), args, today, tokens=tokenizer)
    assert "date" not in str(caught.value)
