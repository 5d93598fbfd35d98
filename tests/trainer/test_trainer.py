"""Test the trainer: accumulation, evaluation, checkpoints, resuming, and refused settings."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from support.tiny import VOCAB, llama, rows
from transformers import AutoModelForCausalLM

from fastkd.trainer import DistillationConfig, DistillationTrainer
from fastkd.trainer.loading import load_student, load_teacher_model

Configuration = Callable[..., DistillationConfig]


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], **tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        if tolerance:
            torch.testing.assert_close(value, b[name], **tolerance)
        else:
            assert torch.equal(value, b[name]), name


def trained(
    args: DistillationConfig, student: Any = None, teacher: Any = None, **options: Any
) -> DistillationTrainer:
    options.setdefault("train_dataset", rows(32))
    student = llama(0) if student is None else student
    trainer = DistillationTrainer(student, llama(1) if teacher is None else teacher, args, **options)
    trainer.train()
    return trainer


def divided(configuration: Configuration, size: int, accumulation: int, **fields: Any) -> Any:
    """Train with plain SGD on batches of four, divided into micro-batches; return the losses and weights."""
    args = configuration(
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        optim="sgd",
        learning_rate=0.5,
        logging_steps=1,
        lr_scheduler_type="constant",
        **fields,
    )
    trainer = trained(args)
    return [e["loss"] for e in trainer.state.log_history if "loss" in e], weights(trainer.student)


@pytest.mark.parametrize("fused_head", ["true", "false"])
def test_accumulation_equals_one_batch(configuration: Configuration, fused_head: str) -> None:
    """Accumulated micro-batches equal one batch. Lengths are uneven, so a mean of means would be noticed."""
    losses, after = divided(configuration, 4, 1, fused_head=fused_head)
    assert not torch.allclose(after["lm_head.weight"], llama(0).lm_head.weight, atol=1e-3)
    for parts in ((1, 4), (2, 2)):
        found = divided(configuration, *parts, fused_head=fused_head)
        assert found[0] == pytest.approx(losses, rel=1e-6)
        assert_same(found[1], after, rtol=1e-5, atol=1e-6)


def test_accumulation_under_autocast_equals_one_batch(configuration: Configuration) -> None:
    """Accumulation under autocast equals one batch up to the rounding of bfloat16 products."""
    losses, after = divided(configuration, 4, 1, bf16=True)
    found = divided(configuration, 1, 4, bf16=True)
    assert found[0] == pytest.approx(losses, rel=2e-3)
    assert_same(found[1], after, rtol=2e-2, atol=5e-3)


def test_the_logged_loss_is_the_definition(configuration: Configuration) -> None:
    data, student, teacher = rows(4), llama(0), llama(1)
    collated = DistillationTrainer(student, teacher, configuration(), train_dataset=data).data_collator(data)
    targets = F.pad(collated["labels"][:, 1:], (0, 1), value=-100)
    with torch.no_grad():
        s, t = student(**collated).logits[targets != -100], teacher(**collated).logits[targets != -100]
    kd = F.kl_div((s / 2).log_softmax(-1), (t / 2).softmax(-1), reduction="batchmean") * 4
    ce = F.cross_entropy(s, targets[targets != -100])

    trainer = trained(
        configuration(max_steps=1, logging_steps=1, kd_ratio=0.9, temperature=2.0),
        student,
        teacher,
        train_dataset=data,
    )
    entry = trainer.state.log_history[0]
    assert entry["kd"] == pytest.approx(kd.item(), rel=1e-4)
    assert entry["ce"] == pytest.approx(ce.item(), rel=1e-4)
    assert entry["loss"] == pytest.approx(0.9 * kd.item() + 0.1 * ce.item(), rel=1e-4)


def test_same_seed_same_weights_and_another_seed_others(configuration: Configuration) -> None:
    first, again, other = (weights(trained(configuration(seed=seed)).student) for seed in (7, 7, 8))
    assert_same(first, again)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_the_teacher_is_frozen_and_not_part_of_anything(configuration: Configuration) -> None:
    teacher = llama(1).train()
    before = weights(teacher)
    trainer = trained(configuration(), teacher=teacher)
    assert_same(weights(teacher), before)
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    ours = {id(p) for p in teacher.parameters()}
    assert ours.isdisjoint(id(p) for p in trainer.model.parameters())
    assert ours.isdisjoint(id(p) for group in trainer.optimizer.param_groups for p in group["params"])
    assert all(name.startswith("student.") for name in trainer.model.state_dict())


def test_checkpoints_hold_the_plain_student(configuration: Configuration, tmp_path: Path) -> None:
    args = configuration(save_strategy="steps", save_steps=2)
    trainer = trained(args)
    trainer.save_model(str(tmp_path / "final"))
    for folder in (tmp_path / "out" / "checkpoint-4", tmp_path / "final"):
        assert set(load_file(folder / "model.safetensors")) <= set(llama(0).state_dict())
        assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        assert_same(weights(loaded), weights(trainer.student))


def test_a_gathered_state_dict_is_saved_without_our_prefix(
    configuration: Configuration, tmp_path: Path
) -> None:
    """FSDP and DeepSpeed pass the state of the wrapped module, whose names have a prefix."""
    trainer = DistillationTrainer(llama(0), llama(1), configuration(), train_dataset=rows(4))
    trainer._save(str(tmp_path / "full"), state_dict=trainer.model.state_dict())
    assert_same(weights(AutoModelForCausalLM.from_pretrained(tmp_path / "full")), weights(llama(0)))


def test_resuming_gives_the_weights_of_an_uninterrupted_run(
    configuration: Configuration, tmp_path: Path
) -> None:
    def args(name: str, **more: Any) -> DistillationConfig:
        return configuration(output_dir=str(tmp_path / name), max_steps=6, **more)

    whole = weights(trained(args("whole")).student)
    trained(args("cut", save_strategy="steps", save_steps=3))
    again = DistillationTrainer(llama(5), llama(1), args("cut"), train_dataset=rows(32))
    again.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    assert_same(weights(again.student), whole)


def test_a_finished_run_that_is_resumed_is_finished(configuration: Configuration, tmp_path: Path) -> None:
    args = configuration(save_strategy="steps", save_steps=2, lr_scheduler_type="constant")
    before = weights(trained(args).student)
    again = DistillationTrainer(llama(5), llama(1), args, train_dataset=rows(32))
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == args.max_steps
    assert_same(weights(again.student), before)
    assert not (tmp_path / "out" / "checkpoint-5").exists()


def test_the_best_model_is_loaded_into_the_student(configuration: Configuration) -> None:
    """The best model is loaded at the end. The metric calls the first the best, since it is not the last."""
    args = configuration(
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_perplexity",
        greater_is_better=True,
    )
    trainer = trained(args, eval_dataset=rows(6, seed=9))
    perplexities = [e["eval_perplexity"] for e in trainer.state.log_history if "eval_perplexity" in e]
    assert perplexities[-1] < max(perplexities)
    assert trainer.evaluate()["eval_perplexity"] == pytest.approx(max(perplexities), rel=1e-6)


@pytest.mark.parametrize("fused_head", ["true", "false"])
def test_evaluation_is_a_mean_over_tokens(configuration: Configuration, fused_head: str) -> None:
    data, student, teacher = rows(7, seed=2), llama(0), llama(1)  # batches of 4 and 3, uneven lengths
    ce = agree = count = 0.0
    teacher_ce = 0.0
    with torch.no_grad():
        for row in data:
            ids = torch.tensor([row["input_ids"]])
            s, t = student(ids).logits[0, :-1], teacher(ids).logits[0, :-1]
            ce += F.cross_entropy(s, ids[0, 1:], reduction="sum").item()
            teacher_ce += F.cross_entropy(t, ids[0, 1:], reduction="sum").item()
            agree += (s.argmax(-1) == t.argmax(-1)).sum().item()
            count += ids.shape[1] - 1
    args = configuration(fused_head=fused_head)
    found = DistillationTrainer(student, teacher, args, eval_dataset=data).evaluate()
    assert found["eval_ce"] == pytest.approx(ce / count, rel=1e-5)
    assert found["eval_perplexity"] == pytest.approx(math.exp(ce / count), rel=1e-5)
    assert found["eval_teacher_perplexity"] == pytest.approx(math.exp(teacher_ce / count), rel=1e-5)
    assert found["eval_agreement"] == pytest.approx(agree / count, abs=1e-6)
    assert found["eval_loss"] == pytest.approx(0.5 * found["eval_kd"] + 0.5 * found["eval_ce"], rel=1e-6)


def test_the_teacher_agrees_with_itself(configuration: Configuration) -> None:
    found = DistillationTrainer(llama(1), llama(1), configuration(), eval_dataset=rows(5)).evaluate()
    assert found["eval_agreement"] == 1
    assert found["eval_kd"] == pytest.approx(0, abs=1e-6)


def test_predictions_and_compute_metrics_see_the_logits(configuration: Configuration) -> None:
    data, student = rows(4, shortest=6, longest=6), llama(0)
    seen = []

    def compute_metrics(prediction: Any) -> dict[str, float]:
        seen.append(prediction.predictions)
        return {"mine": 1.0}

    trainer = DistillationTrainer(
        student, llama(1), configuration(), eval_dataset=data, compute_metrics=compute_metrics
    )
    assert trainer.evaluate()["eval_mine"] == 1
    with torch.no_grad():
        expected = student(torch.tensor([row["input_ids"] for row in data])).logits
    torch.testing.assert_close(torch.tensor(seen[0]), expected, rtol=1e-4, atol=1e-5)


def test_kd_ratio_zero_is_plain_training_and_does_not_run_the_teacher(configuration: Configuration) -> None:
    teacher = llama(1)
    teacher.register_forward_hook(lambda *_: pytest.fail("the teacher ran"))
    args = configuration(kd_ratio=0.0, logging_steps=100, fused_head="false")
    beside = DistillationTrainer(llama(0), teacher, args, train_dataset=rows(32))
    beside.train()
    control = DistillationTrainer(llama(0), None, copy.deepcopy(args), train_dataset=rows(32))
    control.train()
    assert_same(weights(beside.student), weights(control.student))


def test_label_smoothing_is_applied_by_the_loss(configuration: Configuration) -> None:
    """The trainer's label_smoothing_factor is applied as cross-entropy's label smoothing."""
    data, student = rows(4, shortest=6, longest=6), llama(0)
    ids = torch.tensor([row["input_ids"] for row in data])
    with torch.no_grad():
        expected = F.cross_entropy(
            student(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), label_smoothing=0.2
        )
    args = configuration(label_smoothing_factor=0.2, kd_ratio=0.0, max_steps=1, logging_steps=1)
    trainer = DistillationTrainer(student, None, args, train_dataset=data)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_bf16_autocast_trains(configuration: Configuration) -> None:
    student = trained(configuration(bf16=True)).student
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in student.parameters())


def test_gradient_checkpointing_changes_nothing(configuration: Configuration) -> None:
    plain = weights(trained(configuration()).student)
    assert_same(weights(trained(configuration(gradient_checkpointing=True)).student), plain)


def test_the_wrapped_student_has_the_plain_students_attributes(configuration: Configuration) -> None:
    """The wrapped model offers the student's config and generate()."""
    trainer = DistillationTrainer(llama(0), llama(1), configuration(), train_dataset=rows(4))
    assert trainer.model.config is trainer.student.config
    assert trainer.model.generate(torch.tensor([[1, 2]]), max_new_tokens=2, do_sample=False).shape == (1, 4)


class Tokenizer:
    """A tokenizer with only the attributes that the checks read."""

    pad_token_id = eos_token_id = 0

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


def test_padded_heads_share_the_tokenizers_columns(configuration: Configuration) -> None:
    wide = llama(1, vocab=VOCAB + 16)
    tokenizer: Any = Tokenizer(VOCAB)
    trainer = DistillationTrainer(
        llama(0), wide, configuration(), processing_class=tokenizer, eval_dataset=rows(5)
    )
    assert trainer.model.options["vocab_size"] == VOCAB
    assert math.isfinite(trainer.evaluate()["eval_kd"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": None}, "kd_ratio=0.5 needs a teacher"),
        ({"teacher": llama(1, vocab=VOCAB + 16)}, "give the tokenizer"),
        (
            {"teacher": llama(1, vocab=VOCAB + 16), "processing_class": Tokenizer(VOCAB + 16)},
            "made for different vocabularies",
        ),
    ],
)
def test_refusals(configuration: Configuration, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillationTrainer(llama(0), args=configuration(), train_dataset=rows(4), **options)


def test_pickled_weights_are_never_read(configuration: Configuration, tmp_path: Path) -> None:
    """A model whose weights are a pickle is refused; this pickle would write a file when it is loaded."""

    class Payload:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    folder = tmp_path / "pickled"
    llama(0).config.save_pretrained(folder)
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"lm_head.weight": Payload()}, file)
    args = configuration(model=str(folder), teacher=str(folder))
    for load in (load_student, load_teacher_model):
        with pytest.raises(ValueError, match="could not be loaded"):
            load(args)
    assert not (tmp_path / "ran").exists()


def test_a_teacher_that_is_the_student_is_refused(configuration: Configuration) -> None:
    student = llama(0)
    with pytest.raises(ValueError, match="share weights"):
        DistillationTrainer(student, student, configuration(), train_dataset=rows(4))
    assert all(p.requires_grad for p in student.parameters())


def test_fused_head_true_needs_a_linear_head(configuration: Configuration) -> None:
    student = llama(0)
    student.lm_head = torch.nn.Sequential(student.lm_head)
    with pytest.raises(ValueError, match="fused_head=true"):
        DistillationTrainer(student, llama(1), configuration(fused_head="true"), train_dataset=rows(4))
