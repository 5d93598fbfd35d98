"""Test steps on the student's own samples: how they are drawn, which tokens count, and the random state."""

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
from test_matching import bart, bert, class_rows, gpt2, t5
from tiny import VOCAB, llama, rows

from fastkd.corpora.tasks import TASKS
from fastkd.trainer import DistillationConfig, DistillationTrainer
from fastkd.trainer.on_policy import OnPolicy
from fastkd.trainer.teachers import LiveTeacher

Configuration = Callable[..., DistillationConfig]
HERE = Path(__file__).parent
GREEDY = 1e-4  # a temperature at which only the likeliest token is drawn


def prompted(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows with prompts of 1 to 3 tokens."""
    made = []
    for row in rows(count, seed=seed, shortest=5):
        ids = row["input_ids"]
        prompt = 1 + len(ids) % 3
        made.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return made


def pairs(count: int) -> list[dict[str, Any]]:
    return [{"input_ids": [*row["input_ids"], 1], "labels": [5, 6, 1]} for row in rows(count)]


def policy(
    args: DistillationConfig, teacher: Any = None, task: str = "causal_lm", **options: Any
) -> OnPolicy:
    side = LiveTeacher(llama(1) if teacher is None else teacher, TASKS[task], fused=False)
    options = {"tokenizer": None, "pad_token_id": 0, **options}
    return OnPolicy(side, TASKS[task], args=args, **options)


def resampled(
    student: Any, args: DistillationConfig, data: list[dict[str, Any]], step: int = 0, **options: Any
) -> dict[str, Any]:
    made = policy(args, **options)
    batch = made.task.collate(data, 0)
    (found,) = made.resample(iter([batch]), student, student, step)
    return found


def trained(args: DistillationConfig, student: Any = None, **options: Any) -> DistillationTrainer:
    options = {"train_dataset": prompted(32), "teacher": llama(1), **options}
    trainer = DistillationTrainer(llama(0) if student is None else student, args=args, **options)
    trainer.train()
    return trainer


def weights(trainer: DistillationTrainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.student.state_dict().items()}


# The samples.


@pytest.mark.parametrize("make", [llama, gpt2])
def test_answers_follow_their_prompts_whatever_the_padding(configuration: Configuration, make: Any) -> None:
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


def test_an_answer_ends_with_its_end_of_sequence_or_stays_open(configuration: Configuration) -> None:
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


def test_draws_follow_from_seed_step_and_process_alone(
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


def test_the_share_of_steps(configuration: Configuration) -> None:
    """A fraction lmbda of the steps is on-policy, and the seed alone decides which."""

    def due(lmbda: float, seed: int = 42) -> list[bool]:
        made = policy(configuration(lmbda=lmbda, seed=seed))
        return [made.is_due(step) for step in range(2000)]

    first = due(0.3)
    assert 0.26 < sum(first) / 2000 < 0.34
    assert first == due(0.3) and first != due(0.3, seed=1)
    assert all(due(1.0))


def test_columns_without_a_token_are_never_said(configuration: Configuration) -> None:
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


def test_a_window_is_not_left(configuration: Configuration) -> None:
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


# The loss.


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


def test_samples_go_with_matches(configuration: Configuration) -> None:
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


# DDP and FSDP.


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    """DDP runs with samples and every match; FSDP with all but saliency, which it does not support."""
    path = os.pathsep.join(filter(None, (str(HERE.parents[1]), str(HERE), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    runs = {
        "one": ([], ["--saliency"]),
        "ddp": (torchrun, ["--saliency"]),
        "plain": ([], []),
        "fsdp": (torchrun, ["--fsdp"]),
    }
    for name, (launcher, options) in runs.items():
        script = [str(HERE / "matching_processes.py"), str(tmp_path / name), *options]
        done = subprocess.run(
            [sys.executable, *launcher, *script], env=environment, capture_output=True, text=True, timeout=180
        )
        assert done.returncode == 0, done.stderr
    for one, two in (("one", "ddp"), ("plain", "fsdp")):
        for file in ("model.safetensors", "projections.safetensors"):
            first, second = load_file(tmp_path / one / file), load_file(tmp_path / two / file)
            assert first.keys() <= second.keys()  # FSDP writes a tied head too
            for name, value in first.items():
                torch.testing.assert_close(value, second[name], rtol=1e-4, atol=2e-6, msg=f"{two} {name}")
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "fsdp")
