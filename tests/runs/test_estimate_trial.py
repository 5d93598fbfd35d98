"""Test the steps that ``fastkd estimate`` tries to learn how long a step takes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import bert
from support.tiny import llama

from fastkd.runs.estimate import Shape, run_step, trial
from fastkd.trainer import DistillationConfig

Configuration = Callable[..., DistillationConfig]

FIELDS: dict[str, dict[str, Any]] = {
    "live teacher": {},
    "logits": {"fused_head": "false"},
    "no teacher": {"teacher": None, "kd_ratio": 0.0},
    "topk cache": {"teacher": "cache:none"},
    "bucket": {"teacher": "cache:none", "cache_tail": "bucket"},
    "sampled cache": {"teacher": "cache:none", "cache_kind": "sampled"},
    "hidden cache": {"teacher": "cache:none", "cache_kind": "hidden"},
    "features": {"feature_matches": [{"student": -1, "teacher": -1, "kind": "hidden"}]},
    "bfloat16": {"bf16": True},
    "packing": {"packing": True},
    "classes": {"task": "classification", "class_names": ["a", "b", "c"]},
    "labels": {
        "task": "classification",
        "class_names": ["a", "b", "c"],
        "problem_type": "multi_label_classification",
    },
}
QUICK = {"live teacher", "bucket", "features", "labels"}


@pytest.fixture
def run(tmp_path: Path, configuration: Configuration) -> Callable[..., DistillationConfig]:
    """Return the configuration of a run whose models have no weights."""

    def make(**fields: Any) -> DistillationConfig:
        task = fields.get("task", "causal_lm")
        for name, seed in (("student", 0), ("teacher", 1)):
            model = bert(seed) if task == "classification" else llama(seed)
            model.config.save_pretrained(tmp_path / name)
        known = {"model": str(tmp_path / "student"), "teacher": str(tmp_path / "teacher")}
        return configuration(**{**known, **fields})

    return make


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FIELDS]
)
def test_steps_of_every_kind_of_run_are_tried(
    name: str, run: Callable[..., DistillationConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    found = trial.tried(run(**FIELDS[name]), Shape(3, 9), [Shape(3, 5)], Shape(6, 4))
    low, high = found.seconds
    assert found.peak_bytes > 0 and low > 0 and high == pytest.approx(2 * low)


def test_the_range_is_around_the_median_of_all_steps_but_the_first(
    run: Callable[..., DistillationConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of each kind advances the clock by what the list says, and has all its micro-batches."""
    lengths = [50.0, 1.0, 3.0, 2.0]
    monkeypatch.setattr(trial, "MINIMUM", 3)
    monkeypatch.setattr(trial, "MAXIMUM", 3)
    moments = itertools.accumulate([0.0, *(part for length in lengths for part in (0.0, length))])
    monkeypatch.setattr(trial.time, "perf_counter", lambda: next(moments))
    counted = []
    monkeypatch.setattr(trial.Run, "backward", lambda self, batch: counted.append(batch["input_ids"].shape))
    args = run(gradient_accumulation_steps=5)
    found = trial.tried(args, Shape(3, 9), [Shape(3, 5), Shape(3, 4), Shape(3, 6)])
    assert found.seconds == pytest.approx((0.75 * 2.0, 1.5 * 2.0))
    # Steps take the usual batches in turn.
    assert counted == [torch.Size([3, length]) for length in (9, 5, 4, 6, 5) for _ in range(5)]


def test_the_peak_is_that_of_all_steps(
    run: Callable[..., DistillationConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest batch comes first, then an evaluation, then the timed steps; the peak is read last."""
    said: list[Any] = []
    monkeypatch.setattr(trial, "reset_peak_memory", lambda: said.append("reset"))
    monkeypatch.setattr(trial, "peak_memory_mb", lambda: said.append("read") or 2.0)
    monkeypatch.setattr(trial.Run, "backward", lambda self, batch: said.append(batch["input_ids"].shape[1]))
    monkeypatch.setattr(trial.Run, "evaluate", lambda self, batch: said.append("evaluation"))
    found = trial.tried(run(), Shape(3, 9), [Shape(3, 5)], Shape(6, 4))
    assert said[:4] == ["reset", 9, "evaluation", 5] and said.count("read") == 1 and said[-1] == "read"
    assert found.peak_bytes == 2 * 2**20


def test_weights_and_gradients_change(
    run: Callable[..., DistillationConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tried step is a whole one: the optimizer moves the student's weights."""
    before: list[torch.Tensor] = []
    seen: list[trial.Run] = []
    begin = trial.Run.__init__

    def noting(self: Any, *args: Any) -> None:
        begin(self, *args)
        seen.append(self)
        before.extend(p.detach().clone() for p in self.trained)

    monkeypatch.setattr(trial.Run, "__init__", noting)
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    trial.tried(run(learning_rate=0.1), Shape(3, 9), [Shape(3, 9)])
    assert seen and any(not torch.equal(a, b) for a, b in zip(before, seen[0].trained, strict=True))


def test_large_runs_are_not_tried(run: Callable[..., DistillationConfig]) -> None:
    args = run()
    step = run_step(args, Shape(3, 9))
    free = 10 * step.peak
    assert trial.fits(args, step, (0.1, 0.5), 1, free)
    assert not trial.fits(args, step, (0.1, 0.5), 1, step.peak)
    assert not trial.fits(args, step, (100.0, 500.0), 1, free)
    assert not trial.fits(args, step, (0.1, 0.5), 2, free)
    assert not trial.fits(args, replace(step, parameters=10**9), (0.1, 0.5), 1, free)
    assert not trial.fits(args, replace(step, reason="it reads its data"), (0.1, 0.5), 1, free)
    args.model_init_kwargs = {"quantization_config": {"load_in_4bit": True}}
    assert not trial.fits(args, step, (0.1, 0.5), 1, free)
