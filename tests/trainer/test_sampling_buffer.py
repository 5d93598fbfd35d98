"""Test the buffer: one sampling serves several steps, and neither data nor resuming notice it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import gpt2
from support.on_policy import GREEDY, policy, prompted, trained, weights
from support.tiny import llama
from transformers import TrainerCallback

from fastkd.corpora.tasks import TASKS
from fastkd.trainer import DistillationConfig, DistillationTrainer
from fastkd.trainer.on_policy import OnPolicy
from fastkd.trainer.sampling.buffer import Answered, Buffer

Configuration = Callable[..., DistillationConfig]
Step = list[tuple[bool, list[list[int]], list[list[int]]]]


class Recorder:
    """Trains, and keeps the batches of each step and the samplings."""

    def __init__(self, args: DistillationConfig, **options: Any) -> None:
        self.steps: dict[int, Step] = {}
        self.samplings: list[tuple[int, list[list[int]], list[list[int]], dict[str, torch.Tensor]]] = []
        trainer = DistillationTrainer(
            options.pop("student", None) or llama(0), llama(1), args, train_dataset=prompted(13), **options
        )
        step, sample = trainer.training_step, trainer._on_policy.sampler.sample

        def training_step(model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
            self.steps.setdefault(trainer.state.global_step, []).append(_read(inputs))
            return step(model, inputs, *rest)

        def sampled(student: Any, prompts: Any, *rest: Any) -> Any:
            found = sample(student, prompts, *rest)
            self.samplings.append((trainer.state.global_step, prompts, found, weights(trainer)))
            return found

        trainer.training_step, trainer._on_policy.sampler.sample = training_step, sampled
        self.due = trainer._on_policy.is_due
        trainer.train()
        self.trainer = trainer


def _read(inputs: dict[str, Any]) -> tuple[bool, list[list[int]], list[list[int]]]:
    """Whether a batch has the student's own samples, its prompts, and its answers."""
    rows = [ids[mask.bool()] for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
    labels = [row[mask.bool()] for row, mask in zip(inputs["labels"], inputs["attention_mask"], strict=True)]
    pairs = list(zip(rows, labels, strict=True))
    return (
        inputs.get("own_samples", False),
        [row[label == -100].tolist() for row, label in pairs],
        [row[label != -100].tolist() for row, label in pairs],
    )


def windows(due: Callable[[int], bool], steps: int, epoch: int, size: int) -> list[list[int]]:
    """The steps that each sampling serves, by the definition: ``size`` on-policy steps of one epoch."""
    found: list[list[int]] = []
    for first in range(0, steps, epoch):
        own = [step for step in range(first, min(first + epoch, steps)) if due(step)]
        found += [own[i : i + size] for i in range(0, len(own), size)]
    return found


@pytest.mark.parametrize(("lmbda", "size"), [(1.0, 3), (0.6, 2)])
def test_one_sampling_serves_several_steps(configuration: Configuration, lmbda: float, size: int) -> None:
    """13 rows in batches of 2, two batches a step: epochs of 4 steps, of which the last has one batch."""
    fields = {"lmbda": lmbda, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    fields |= {"max_steps": 10, "max_completion_length": 4, "sampling_temperature": GREEDY}
    fields |= {"learning_rate": 0.1}
    plain = Recorder(configuration(**fields))
    buffered = Recorder(configuration(**fields, sampling_steps=size))
    assert list(buffered.steps) == list(plain.steps) == list(range(10))
    for step, batches in plain.steps.items():  # the same prompts in the same order, and the data's answers
        other = buffered.steps[step]
        assert [batch[:2] for batch in other] == [batch[:2] for batch in batches]
        assert len(batches) == (1 if step % 4 == 3 else 2)
        assert [batch[2] for batch in other if not batch[0]] == [b[2] for b in batches if not b[0]]
    expected = windows(buffered.due, 10, 4, size)
    assert [sampling[0] for sampling in buffered.samplings] == [window[0] for window in expected]
    assert any(len(window) == size for window in expected) and any(len(w) < size for w in expected)
    for window, (_, prompts, answers, then) in zip(expected, buffered.samplings, strict=True):
        served = [batch for step in window for batch in buffered.steps[step]]
        assert prompts == [prompt for batch in served for prompt in batch[1]]
        assert answers == [answer for batch in served for answer in batch[2]]
        student = llama(0)
        student.load_state_dict(then)  # the weights of the window's first step
        for prompt, answer in zip(prompts, answers, strict=True):
            whole = student.generate(
                torch.tensor([prompt]), max_new_tokens=4, do_sample=False, pad_token_id=0
            )
            assert whole[0, len(prompt) :].tolist() == answer
    stale = weights(plain.trainer), weights(buffered.trainer)
    assert any(not torch.equal(value, stale[1][name]) for name, value in stale[0].items())


def test_without_a_buffer_nothing_is_read_ahead(configuration: Configuration) -> None:
    """One sampling for each batch, at the moment at which it is needed, with the draws of ``resample``."""
    made = policy(configuration(lmbda=1.0, max_completion_length=4))
    batches = [TASKS["causal_lm"].collate(prompted(3, seed=i), 0) for i in range(3)]
    source, student = iter(batches), llama(0)
    found = list(zip(range(2), made.batches(source, 2, student, student, 5, 9), strict=False))
    expected = list(made.resample(iter(batches[:2]), student, student, 5))
    assert [batch["input_ids"].tolist() for _, batch in found] == [
        batch["input_ids"].tolist() for batch in expected
    ]
    assert not made.buffer.drawn and not made.buffer._read


@pytest.mark.parametrize("accumulation", [1, 2])
def test_resuming_in_the_middle_of_a_buffer(
    configuration: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulation: int
) -> None:
    """A resumed run ends with the weights of an unbroken one. With samples drawn anew it would not."""

    def args(name: str, **more: Any) -> DistillationConfig:
        fields = {"max_steps": 7, "lmbda": 0.7, "max_completion_length": 5, "sampling_steps": 3}
        fields |= {"gradient_accumulation_steps": accumulation, "learning_rate": 0.05}
        return configuration(output_dir=str(tmp_path / name), **fields, **more)

    def student(seed: int) -> Any:  # with dropout, whose random numbers sampling must not change
        made = gpt2(seed)
        made.transformer.drop.p = 0.3
        return made

    def resumed() -> dict[str, torch.Tensor]:
        trainer = DistillationTrainer(student(5), llama(1), args("cut"), train_dataset=prompted(64))
        trainer.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
        return weights(trainer)

    whole = trained(args("whole"), student(0), train_dataset=prompted(64))
    trained(args("cut", save_strategy="steps", save_steps=3), student(0), train_dataset=prompted(64))
    saved = json.loads((tmp_path / "cut" / "checkpoint-3" / "own_samples_0.json").read_text())
    assert saved["processes"] == 1 and all(int(step) >= 3 for step in saved["steps"])
    again = resumed()
    for name, value in weights(whole).items():
        assert torch.equal(again[name], value), name
    monkeypatch.setattr(OnPolicy, "load", lambda *_: None)
    anew = resumed()
    assert any(not torch.equal(anew[name], value) for name, value in again.items())


def test_an_epoch_that_a_callback_ends(configuration: Configuration) -> None:
    """Data and samples for the rest of the epoch are forgotten with it."""

    class Ends(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_epoch_stop = state.global_step % 3 == 1

    fields = {"lmbda": 1.0, "per_device_train_batch_size": 2, "max_steps": -1, "max_completion_length": 3}
    plain = Recorder(configuration(**fields), callbacks=[Ends()])
    buffered = Recorder(configuration(**fields, sampling_steps=3), callbacks=[Ends()])
    for step, batches in plain.steps.items():
        assert [batch[1] for batch in buffered.steps[step]] == [batch[1] for batch in batches]
    assert [sampling[0] for sampling in buffered.samplings] == [0, 1, 4]


def test_samples_for_other_prompts_are_drawn_again(
    configuration: Configuration, caplog: pytest.LogCaptureFixture
) -> None:
    made = policy(configuration(lmbda=1.0, max_completion_length=4, sampling_steps=2))
    batch, student = TASKS["causal_lm"].collate(prompted(3), 0), llama(0)
    prompts = made.prompts(batch)
    made.buffer.drawn = {0: [Answered(prompts, [[7], [8], [9]])]}
    (found,) = made.batches(iter([batch]), 1, student, student, 0, 1)
    assert found["labels"][found["labels"] != -100].tolist() == [7, 8, 9]
    made.buffer.drawn = {0: [Answered([[1], *prompts[1:]], [[7], [8], [9]])]}
    (found,) = made.batches(iter([batch]), 1, student, student, 0, 1)
    assert found["labels"][found["labels"] != -100].tolist() != [7, 8, 9]
    assert "answer other prompts" in caplog.text


def test_a_checkpoint_of_other_processes_or_data_gives_no_samples(
    configuration: Configuration, tmp_path: Path
) -> None:
    """The batches of a process depend on the number of processes, and those of a step on what was skipped."""
    first = Buffer({4: [Answered([[1, 2]], [[3]])]})
    first.save(tmp_path / "own_samples_0.json", 1)
    again, other = Buffer(), Buffer({9: []})
    again.load(tmp_path / "own_samples_0.json", 1)
    other.load(tmp_path / "own_samples_0.json", 2)
    assert again.drawn == first.drawn and not other.drawn
    for skip in (False, True):
        made = policy(configuration(lmbda=1.0, sampling_steps=2, ignore_data_skip=skip))
        made.load(tmp_path)
        assert bool(made.buffer.drawn) != skip
    Buffer().save(tmp_path / "none.json", 1)
    assert not (tmp_path / "none.json").exists()
