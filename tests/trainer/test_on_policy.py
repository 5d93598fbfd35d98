"""Test training on the student's own samples: which steps and tokens count, resuming, two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file
from support.families import bert, class_rows, gpt2
from support.on_policy import GREEDY, policy, prompted, resampled, trained, weights
from support.tiny import VOCAB, llama, rows

from fastkd.trainer import DistillationConfig, DistillationTrainer

Configuration = Callable[..., DistillationConfig]

ROOT = Path(__file__).parents[2]


def test_a_fraction_lmbda_of_the_steps_is_on_policy(configuration: Configuration) -> None:
    """A fraction lmbda of the steps is on-policy, and the seed alone decides which."""

    def due(lmbda: float, seed: int = 42) -> list[bool]:
        made = policy(configuration(lmbda=lmbda, seed=seed))
        return [made.is_due(step) for step in range(2000)]

    first = due(0.3)
    assert 0.26 < sum(first) / 2000 < 0.34
    assert first == due(0.3) and first != due(0.3, seed=1)
    assert all(due(1.0))


@pytest.mark.parametrize("fused_head", ["true", "false"])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_the_loss_is_the_divergence_on_the_samples(
    configuration: Configuration, fused_head: str, divergence: str
) -> None:
    """The loss covers only sampled tokens, has no cross-entropy, and uses its own temperature."""
    data, student, teacher = prompted(4), llama(0), llama(1)
    args = configuration(
        lmbda=1.0,
        kd_ratio=0.3,
        temperature=2.0,
        sampling_temperature=0.7,
        divergence=divergence,
        max_completion_length=5,
        max_steps=1,
        logging_steps=1,
        fused_head=fused_head,
    )
    batch = resampled(student, args, data)  # a mean does not depend on the order of the rows, ...
    targets = F.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        q, p = ((model(**inputs).logits[targets != -100] / 2).log_softmax(-1) for model in (student, teacher))
    q, p = (p, q) if divergence == "reverse_kl" else (q, p)
    expected = F.kl_div(q, p, log_target=True, reduction="batchmean") * 4
    trainer = DistillationTrainer(student, teacher, args, train_dataset=data)
    trainer.get_train_dataloader = lambda: torch.utils.data.DataLoader(  # ... but the draws do
        data, batch_size=4, collate_fn=trainer.data_collator
    )
    trainer.train()
    entry = trainer.state.log_history[0]
    assert entry["loss"] == pytest.approx(expected.item(), rel=1e-4)
    assert entry["kd"] == pytest.approx(expected.item(), rel=1e-4)


def test_some_steps_are_on_policy_and_the_others_are_not(configuration: Configuration) -> None:
    args = configuration(lmbda=0.5, kd_ratio=0.5, max_steps=8, logging_steps=1, max_completion_length=4)
    trainer = trained(args)
    due = [trainer._on_policy.is_due(step) for step in range(8)]
    assert True in due and False in due
    for entry, own in zip([e for e in trainer.state.log_history if "loss" in e], due, strict=True):
        expected = entry["kd"] if own else 0.5 * entry["kd"] + 0.5 * entry["ce"]
        assert entry["loss"] == pytest.approx(expected, rel=1e-5)


def test_accumulation_counts_the_sampled_tokens(configuration: Configuration) -> None:
    """The tokens of all micro-batches' samples are counted.

    Answers have uneven lengths, so a mean of means, or counting the data's tokens, would be noticed.
    """
    found = []
    for size, accumulation in ((8, 1), (4, 2), (1, 8)):
        student = llama(0)
        student.generation_config.eos_token_id = list(range(0, VOCAB, 4))
        args = configuration(
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            lmbda=1.0,
            sampling_temperature=GREEDY,
            max_completion_length=6,
            optim="sgd",
            learning_rate=0.5,
            logging_steps=1,
        )
        trainer = trained(args, student)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        found.append((losses, weights(trainer)))
    for losses, after in found[1:]:
        assert losses == pytest.approx(found[0][0], rel=1e-5)
        for name, value in after.items():
            torch.testing.assert_close(value, found[0][1][name], rtol=1e-4, atol=1e-6)


def test_resuming_gives_the_weights_of_an_uninterrupted_run(
    configuration: Configuration, tmp_path: Path
) -> None:
    def args(name: str, **more: Any) -> DistillationConfig:
        return configuration(
            output_dir=str(tmp_path / name), max_steps=6, lmbda=0.5, max_completion_length=5, **more
        )

    def student(seed: int) -> Any:  # with dropout, whose random numbers sampling must not change
        made = gpt2(seed)
        made.transformer.drop.p = 0.3
        return made

    whole = trained(args("whole"), student(0))
    assert {whole._on_policy.is_due(step) for step in range(3, 6)} == {True, False}
    trained(args("cut", save_strategy="steps", save_steps=3), student(0))
    again = DistillationTrainer(student(5), llama(1), args("cut"), train_dataset=prompted(32))
    again.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    for name, value in weights(again).items():
        assert torch.equal(value, weights(whole)[name]), name


def test_gradient_checkpointing_changes_nothing(configuration: Configuration) -> None:
    found = [
        weights(trained(configuration(lmbda=1.0, max_completion_length=5, gradient_checkpointing=on)))
        for on in (False, True)
    ]
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def test_mixed_precision_and_answers_that_end_at_once(configuration: Configuration) -> None:
    student = llama(0)
    student.generation_config.eos_token_id = list(range(VOCAB))
    trainer = trained(
        configuration(lmbda=1.0, bf16=True, logging_steps=1), student, train_dataset=prompted(16)
    )
    assert all(torch.isfinite(value).all() for value in weights(trainer).values())
    assert all(entry["kd"] > 0 for entry in trainer.state.log_history if "kd" in entry)


def test_samples_can_be_combined_with_matches(configuration: Configuration) -> None:
    """On-policy steps can be combined with matches: the loss is the sum of both."""
    args = configuration(
        lmbda=1.0,
        max_completion_length=4,
        feature_matches=[{"student": 1, "teacher": 1}],
        gradient_match_weight=0.5,
        logging_steps=1,
    )
    entry = trained(args).state.log_history[0]
    expected = entry["kd"] + entry["feature_hidden"] + entry["saliency"]
    assert entry["loss"] == pytest.approx(expected, rel=1e-5)


class Cached:
    """A cached teacher with only the attributes that the check reads."""

    live = False
    columns = VOCAB


@pytest.mark.parametrize(
    ("fields", "teacher", "message"),
    [
        ({"task": "classification"}, bert(1), "a classifier writes nothing"),
        ({"kd_ratio": 0.0}, None, "needs a teacher to judge the samples"),
        ({}, Cached(), "a cached teacher cannot judge new text"),
        ({"packing": True}, llama(1), "packed texts have no prompts"),
    ],
)
def test_refusals(configuration: Configuration, fields: dict[str, Any], teacher: Any, message: str) -> None:
    student = bert(0) if fields.get("task") else llama(0)
    data = class_rows() if fields.get("task") else prompted(4)
    with pytest.raises(ValueError, match=message):
        DistillationTrainer(student, teacher, configuration(lmbda=0.5, **fields), train_dataset=data)


def test_plain_text_is_refused_when_training_begins(configuration: Configuration) -> None:
    with pytest.raises(ValueError, match="set lmbda: 0"):
        trained(configuration(lmbda=1.0), train_dataset=rows(8))


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    """DDP runs with samples and every match; FSDP with all but saliency, which it does not support; both also
    with samples for several steps.
    """
    path = os.pathsep.join(filter(None, (str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    runs = {
        "one": ([], ["--saliency"]),
        "ddp": (torchrun, ["--saliency"]),
        "plain": ([], []),
        "fsdp": (torchrun, ["--fsdp"]),
        "buffered one": ([], ["--sampling-steps", "2"]),
        "buffered ddp": (torchrun, ["--sampling-steps", "2"]),
        "buffered fsdp": (torchrun, ["--fsdp", "--sampling-steps", "2"]),
    }
    for name, (launcher, options) in runs.items():
        script = [str(ROOT / "tests/support/matching_processes.py"), str(tmp_path / name), *options]
        done = subprocess.run(
            [sys.executable, *launcher, *script], env=environment, capture_output=True, text=True, timeout=180
        )
        assert done.returncode == 0, done.stderr
    buffered = [("buffered one", "buffered ddp"), ("buffered one", "buffered fsdp")]
    for one, two in (("one", "ddp"), ("plain", "fsdp"), *buffered):
        for file in ("model.safetensors", "projections.safetensors"):
            first, second = load_file(tmp_path / one / file), load_file(tmp_path / two / file)
            assert first.keys() <= second.keys()  # FSDP writes a tied head too
            for name, value in first.items():
                torch.testing.assert_close(value, second[name], rtol=1e-4, atol=2e-6, msg=f"{two} {name}")
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "fsdp")
