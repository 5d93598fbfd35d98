"""Test the loss of a classifier some of whose texts have no label, against plain torch in float64."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from support.mixed_labels import PROBLEMS, labels_of, mixed, model
from support.stored import settings
from torch import Tensor

from fastkd.corpora.labels import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from fastkd.runs.cache import make_cache
from fastkd.trainer import DistillationConfig, DistillationTrainer
from fastkd.trainer.teachers import CachedTeacher

ROOT = Path(__file__).parents[2]
Configuration = Callable[..., DistillationConfig]


def trainer(configuration: Configuration, problem: str, data: Any = None, **fields: Any) -> Any:
    data = mixed(problem) if data is None else data
    args = configuration(
        **{"task": "classification", "per_device_train_batch_size": 12, "logging_steps": 1, **fields}
    )
    return DistillationTrainer(model(0, problem), model(1, problem), args, None, data, data)


def batch_of(made: Any) -> Any:
    return made.data_collator([made.train_dataset[i] for i in range(len(made.train_dataset))])


def kd(z: Tensor, t: Tensor, divergence: str, temperature: float) -> Tensor:
    """The divergence of each distribution, times T^2, as its definition has it."""
    q, p = (z / temperature).softmax(-1), (t / temperature).softmax(-1)
    if divergence == "forward_kl":
        found = (p * (p / q).log()).sum(-1)
    else:
        m = (p + q) / 2
        found = ((p * (p / m).log() + q * (q / m).log()) / 2).sum(-1)
    return found * temperature**2


def expected(z: Tensor, t: Tensor, y: Tensor, problem: str, ratio: float, divergence: str) -> Tensor:
    """(1/N) sum over all targets of [r D + (1 - r) CE where there is a label]; masked ones do not exist."""
    if problem == REGRESSION:
        z, t = z[:, 0], t[:, 0]
        counted, known = y != -100, (y != -100) & ~y.isnan()
        soft, hard = (z - t).square(), (z - y.nan_to_num()).square()
    else:
        counted, known = y != -100, y >= 0
        if problem == MULTI_LABEL:
            hard = F.binary_cross_entropy_with_logits(z, y.clamp(min=0).double(), reduction="none")
            z, t = (torch.stack([torch.zeros_like(x), x], -1) for x in (z, t))
        else:
            hard = F.cross_entropy(z, y.clamp(min=0), reduction="none")
        soft = kd(z, t, divergence, 2.0)
    return (ratio * soft[counted].sum() + (1 - ratio) * hard[known].sum()) / counted.sum()


@pytest.mark.parametrize("ratio", [0.3, 1.0])
@pytest.mark.parametrize(
    ("problem", "divergence"),
    [
        *((problem, name) for problem in (SINGLE_LABEL, MULTI_LABEL) for name in ("forward_kl", "jsd")),
        (REGRESSION, "forward_kl"),  # the default, since a regression has no divergence
    ],
)
def test_every_text_counts_once(
    configuration: Configuration, problem: str, divergence: str, ratio: float
) -> None:
    more = {} if problem == REGRESSION else {"divergence": divergence, "temperature": 2.0}
    made = trainer(configuration, problem, kd_ratio=ratio, **more)
    batch = batch_of(made)
    made.model.train()
    loss = made.model(**batch)["loss"]
    loss.backward()
    gradient = made.student.classifier.bias.grad.double()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    z, t = (model(seed, problem).double().eval()(**inputs).logits for seed in (0, 1))
    y = torch.tensor(labels_of(problem), dtype=torch.float64 if problem == REGRESSION else torch.long)
    wanted = expected(z, t.detach(), y, problem, ratio, divergence)
    (slope,) = torch.autograd.grad(wanted, z)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    torch.testing.assert_close(gradient, slope.sum(0), rtol=1e-4, atol=1e-6)
    assert made.evaluate()["eval_loss"] == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_metrics_are_over_the_texts_that_they_read(configuration: Configuration, problem: str) -> None:
    found = trainer(configuration, problem).evaluate()
    labels = labels_of(problem)
    without: Any = [[-1, -1, -1] if problem == MULTI_LABEL else float("nan") if problem == REGRESSION else -1]
    rest = trainer(configuration, problem, mixed(problem, without * len(labels))).evaluate()
    if problem != MULTI_LABEL:  # whose labels may be missing one by one
        missing = (-100,) if problem == REGRESSION else (-1, -100)
        known = [i for i, label in enumerate(labels) if label == label and label not in missing]
        alone = trainer(configuration, problem, mixed(problem).select(known)).evaluate()
        for name in ("eval_mse",) if problem == REGRESSION else ("eval_ce", "eval_accuracy"):
            assert found[name] == pytest.approx(alone[name], rel=1e-5)
    assert "eval_kd" in rest and "eval_ce" not in rest and "eval_mse" not in rest


def test_a_label_in_every_text_gives_what_it_always_gave(configuration: Configuration) -> None:
    """The loss and all gradients are those of one call of the kernel, bit for bit."""
    from fastkd import kd_loss

    made = trainer(configuration, SINGLE_LABEL, mixed(SINGLE_LABEL, [i % 3 for i in range(12)]))
    batch = batch_of(made)
    made.model.train()
    made.model(**batch)["loss"].backward()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    plain = model(0, SINGLE_LABEL).train()
    teacher = model(1, SINGLE_LABEL).eval()(**inputs).logits.detach()
    kd_loss(plain(**inputs).logits, teacher, batch["labels"], kd_ratio=0.5).backward()
    for (name, one), other in zip(made.student.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name


def weights(made: Any) -> dict[str, Tensor]:
    return {name: x.detach().clone() for name, x in made.student.state_dict().items()}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_accumulation_gives_the_same_step(configuration: Configuration, problem: str) -> None:
    """One of the four micro-batches has no label at all."""
    found = []
    for size, accumulation in ((12, 1), (3, 4)):
        made = trainer(
            configuration, problem, per_device_train_batch_size=size, optim="sgd", learning_rate=0.1,
            gradient_accumulation_steps=accumulation, max_steps=2, max_grad_norm=0.0,
        )  # fmt: skip
        made.train()
        found.append(weights(made))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-5, atol=1e-6)


def test_without_a_teacher_they_are_left_out(
    configuration: Configuration, caplog: pytest.LogCaptureFixture
) -> None:
    """The weights are those of a run on the labelled texts alone; a stream is masked batch by batch."""
    found = []
    data = mixed(SINGLE_LABEL)
    known = [i for i, label in enumerate(labels_of(SINGLE_LABEL)) if label >= 0]
    for rows in (data, data.select(known), data.to_iterable_dataset(), list(data)):
        args = configuration(
            task="classification", kd_ratio=0.0, max_steps=1, per_device_train_batch_size=12, optim="sgd"
        )
        made = DistillationTrainer(model(0, SINGLE_LABEL), None, args, None, rows)
        made.train()
        found.append(weights(made))
    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5)
    assert "4 of 12 texts have no label and are left out" in caplog.text


def test_a_batch_without_any_label(configuration: Configuration) -> None:
    stream = mixed(SINGLE_LABEL, [-1] * 8 + [0, 1]).to_iterable_dataset()
    args = configuration(task="classification", kd_ratio=0.0, max_steps=2, lr_scheduler_type="constant")
    made = DistillationTrainer(model(0, SINGLE_LABEL), None, args, None, stream)
    made.train()
    assert all(x.isfinite().all() for x in weights(made).values())


def test_cached_equals_live(configuration: Configuration, tmp_path: Path) -> None:
    """The cache has entries for texts without a label too."""
    data, sides = mixed(SINGLE_LABEL), (model(0, SINGLE_LABEL), model(1, SINGLE_LABEL))
    for part in ("train", "eval"):
        made = make_cache(sides[1], data, tmp_path / part, settings(task="classification"), None)
        assert made.tokens == sum(label != -100 for label in labels_of(SINGLE_LABEL))
    found = []
    for teacher in (sides[1], CachedTeacher(tmp_path)):
        args = configuration(task="classification", kd_ratio=0.4)
        found.append(DistillationTrainer(model(0, SINGLE_LABEL), teacher, args, None, data, data).evaluate())
    for name in ("eval_loss", "eval_kd", "eval_ce", "eval_agreement"):
        assert found[1][name] == pytest.approx(found[0][name], rel=5e-3)


def test_a_divergence_that_reads_labels(configuration: Configuration) -> None:
    with pytest.raises(ValueError, match="4 of 11 texts have no label, and divergence: decoupled reads one"):
        trainer(configuration, SINGLE_LABEL, divergence="decoupled")
    with pytest.raises(ValueError, match="kd_ratio: 0 learns from nothing else"):
        trainer(configuration, SINGLE_LABEL, mixed(SINGLE_LABEL, [-1] * 4), kd_ratio=0.0)


@pytest.mark.parametrize("problem", [SINGLE_LABEL, MULTI_LABEL])
def test_features_of_texts_without_labels(configuration: Configuration, problem: str) -> None:
    """Layers are matched in every text, saliency in those with a label."""
    made = trainer(
        configuration, problem, max_steps=1, gradient_match_weight=0.1, kd_ratio=0.0,
        feature_matches=[{"student": -1, "teacher": -1, "kind": "hidden"}],
    )  # fmt: skip
    assert len(made.train_dataset) == 12
    made.train()
    logged = next(entry for entry in made.state.log_history if "feature_hidden" in entry)
    assert logged["feature_hidden"] > 0 and logged["saliency"] > 0
    assert all(x.isfinite().all() for x in weights(made).values())


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    path = os.pathsep.join(filter(None, (str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    found = []
    for processes in (1, 2):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        folder = tmp_path / str(processes)
        script = [str(ROOT / "tests/support/mixed_labels_processes.py"), str(folder)]
        command = [sys.executable, *(launcher if processes > 1 else []), *script]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found.append(json.loads((folder / "found.json").read_text()))
    assert found[1]["eval"] == pytest.approx(found[0]["eval"], rel=1e-5)
    assert found[1]["weights"] == pytest.approx(found[0]["weights"], rel=1e-5, abs=1e-6)


def test_nothing_is_said_where_every_text_has_a_label(
    configuration: Configuration, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        trainer(configuration, SINGLE_LABEL, Dataset.from_list(list(mixed(SINGLE_LABEL, [0, 1, 2]))))
    assert "have no label" not in caplog.text
