"""Test the student's own samples: how they are drawn, and which tokens they may have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.families import bart, gpt2, t5
from support.on_policy import GREEDY, pairs, policy, prompted, resampled, weights
from support.tiny import VOCAB, llama, rows

from fastkd.corpora.tasks import TASKS
from fastkd.trainer import DistillationConfig, DistillationTrainer

Configuration = Callable[..., DistillationConfig]


@pytest.mark.parametrize("make", [llama, gpt2])
def test_padding_changes_no_sample(configuration: Configuration, make: Any) -> None:
    """At a temperature near 0 a sample is the greedy answer to its prompt without padding."""
    student, data = make(0).train(), prompted(6)
    batch = resampled(
        student, configuration(lmbda=1.0, max_completion_length=5, sampling_temperature=GREEDY), data
    )
    assert batch.pop("own_samples") is True
    assert student.training and all(module.training for module in student.modules())
    expected = []
    for row in data:
        prompt = row["input_ids"][: row["labels"].count(-100)]
        alone = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
        whole = student.generate(torch.tensor([prompt]), **alone)[0].tolist()
        expected.append({"input_ids": whole, "labels": [-100] * len(prompt) + whole[len(prompt) :]})
    for name, value in TASKS["causal_lm"].collate(expected, 0).items():
        assert torch.equal(batch[name], value), name


def test_rows_without_labels_are_prompts(configuration: Configuration) -> None:
    """A row without any label is a prompt as a whole, padded or not."""
    args = configuration(lmbda=1.0, max_completion_length=5, sampling_temperature=GREEDY)
    answered = prompted(6)
    asked = []
    for row in answered:
        ids = row["input_ids"][: row["labels"].count(-100)]
        asked.append({"input_ids": ids, "labels": [-100] * len(ids)})
    one, other = (resampled(llama(0), args, data) for data in (answered, asked))
    assert all(torch.equal(one[name], other[name]) for name in ("input_ids", "labels"))


def test_data_without_prompts_is_refused_before_the_first_step(configuration: Configuration) -> None:
    args = configuration(lmbda=0.01)
    with pytest.raises(ValueError, match="lmbda has the student answer prompts, and this data has none"):
        DistillationTrainer(llama(0), llama(1), args, train_dataset=rows(8))


def test_an_answer_keeps_its_end_of_sequence_token(configuration: Configuration) -> None:
    student, data = llama(0), prompted(8)
    args = configuration(lmbda=1.0, max_completion_length=6, sampling_temperature=GREEDY)
    open_labels = resampled(student, args, data)["labels"]
    answers = [row[row != -100].tolist() for row in open_labels]
    assert all(len(answer) == 6 for answer in answers) and not any(0 in answer for answer in answers)
    end = answers[0][2]
    student.generation_config.eos_token_id = [0, end]
    closed = [row[row != -100].tolist() for row in resampled(student, args, data)["labels"]]
    for answer, before in zip(closed, answers, strict=True):
        assert answer == (before[: before.index(end) + 1] if end in before else before)
    assert {len(answer) for answer in closed} > {6}  # both kinds occur


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_samples_have_the_students_distribution_at_the_sampling_temperature(
    configuration: Configuration, temperature: float
) -> None:
    """A checkpoint's own generation settings must not affect the samples."""
    student, prompt = llama(0), [7, 3]
    student.generation_config.update(top_k=2, top_p=0.5, repetition_penalty=3.0, do_sample=False)
    count = 4000
    data = [{"input_ids": [*prompt, 5], "labels": [-100, -100, 5]}] * count
    data += [{"input_ids": [9, 9, 9, 9, 5], "labels": [-100] * 4 + [5]}]  # so that there is padding
    args = configuration(
        lmbda=1.0, max_completion_length=1, sampling_temperature=temperature, temperature=7.0
    )
    labels = resampled(student, args, data)["labels"][:count, 2]
    with torch.no_grad():
        p = (student(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1)
    found = torch.bincount(labels, minlength=VOCAB) / count
    assert (found - p).abs().sum() / 2 < 0.06  # about 0.03 by chance
    other = (p.log() * temperature / (2.5 - temperature)).softmax(-1)
    assert (found - other).abs().sum() / 2 > 0.1


def test_draws_depend_only_on_seed_step_and_process(
    configuration: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher = llama(0), llama(1)
    batch = TASKS["causal_lm"].collate(prompted(6), 0)

    def drawn(step: int = 0, number: int = 0, seed: int = 42) -> list[list[int]]:
        made = policy(configuration(lmbda=1.0, max_completion_length=6, seed=seed), teacher)
        found = list(made.resample(iter([batch] * (number + 1)), student, student, step))
        return found[number]["input_ids"].tolist()

    before = torch.get_rng_state()
    first = drawn()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert drawn() == first
    others = [drawn(step=1), drawn(number=1), drawn(seed=5)]
    monkeypatch.setattr(DistillationConfig, "process_index", 1)
    others.append(drawn())
    assert all(other != first for other in others)


def test_columns_without_a_token_are_never_sampled(configuration: Configuration) -> None:
    """The student never samples padding columns of its head, nor tokens without a column of the teacher."""

    class Tokenizer:
        eos_token_id = 0

        def __len__(self) -> int:
            return VOCAB - 20

    student = llama(0, vocab=VOCAB)
    args = configuration(lmbda=1.0, max_completion_length=12, sampling_temperature=50.0)
    data = prompted(8)
    assert resampled(student, args, data)["labels"].max() > VOCAB - 10
    narrow = resampled(student, args, data, teacher=llama(1, vocab=VOCAB - 10))
    assert VOCAB - 20 < narrow["labels"].max() < VOCAB - 10
    assert resampled(student, args, data, tokenizer=Tokenizer())["labels"].max() < VOCAB - 20


def test_samples_stay_within_the_window(configuration: Configuration) -> None:
    """Samples stay within the student's window; GPT-2 has only 32 positions."""
    student = gpt2(0)
    student.generation_config.eos_token_id = None
    found = resampled(student, configuration(lmbda=1.0, max_completion_length=256), prompted(4))
    assert found["input_ids"].shape[1] == 32
    assert torch.isfinite(student(input_ids=found["input_ids"]).logits).all()


def test_rows_without_a_prompt_are_left_out(configuration: Configuration) -> None:
    args = configuration(lmbda=1.0, max_completion_length=3)
    data = prompted(2)
    found = resampled(llama(0), args, [data[0], {"input_ids": [5, 6, 7], "labels": [5, 6, 7]}, data[1]])
    assert len(found["input_ids"]) == 2
    with pytest.raises(ValueError, match="this data has none: give prompt and completion columns"):
        resampled(llama(0), args, rows(4))


@pytest.mark.parametrize("make", [t5, bart])
def test_sequence_to_sequence(configuration: Configuration, make: Any) -> None:
    student, teacher, data = make(0), make(1), pairs(5)
    student.generation_config.forced_eos_token_id = 1  # BART forces an end token at the length limit
    args = configuration(
        task="seq2seq", lmbda=1.0, max_completion_length=4, sampling_temperature=GREEDY, kd_ratio=1.0
    )
    found = resampled(student, args, data, teacher=teacher, task="seq2seq")
    student.generation_config.forced_eos_token_id = None
    for i, row in enumerate(data):
        source = torch.tensor([row["input_ids"]])
        expected = student.generate(source, max_new_tokens=4, do_sample=False)[0, 1:].tolist()
        said = found["labels"][i]
        assert said[said != -100].tolist() == expected
        assert found["input_ids"][i][found["attention_mask"][i].bool()].tolist() == row["input_ids"]
    trainer = DistillationTrainer(
        student,
        teacher,
        configuration(task="seq2seq", lmbda=1.0, max_completion_length=4),
        train_dataset=data,
    )
    before = weights(trainer)
    trainer.train()
    assert not torch.equal(before["lm_head.weight"], weights(trainer)["lm_head.weight"])
