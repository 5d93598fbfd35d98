"""Test students with a `peft` adapter, and their own base model as the teacher."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.families import bert, class_rows, gpt2, t5
from support.tiny import llama, rows

peft = pytest.importorskip("peft")

from fastkd.corpora.tasks import TASKS, Task  # noqa: E402
from fastkd.trainer import DistillationConfig, DistillationTrainer  # noqa: E402
from fastkd.trainer.heads import find_linear_head  # noqa: E402
from fastkd.trainer.loading import load_student, load_teacher, load_teacher_model  # noqa: E402
from fastkd.trainer.models import Requested, multiply_out  # noqa: E402
from fastkd.trainer.teachers import BaseTeacher  # noqa: E402

Configuration = Callable[..., DistillationConfig]
CAUSAL = TASKS["causal_lm"]


def adapted(model: Any, seed: int = 7, dropout: float = 0.0, **fields: Any) -> Any:
    """Add a LoRA adapter with random weights, since a new adapter of peft changes nothing."""
    config = peft.LoraConfig(r=2, lora_alpha=8, lora_dropout=dropout, **fields)
    made = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made


def lora_llama(base: int = 0, **options: Any) -> Any:
    return adapted(llama(base), target_modules=["q_proj", "v_proj", "down_proj"], **options)


def adapter(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def trained(args: DistillationConfig, student: Any, teacher: Any = None, **options: Any) -> Any:
    options.setdefault("train_dataset", rows(32))
    trainer = DistillationTrainer(student, llama(1) if teacher is None else teacher, args, **options)
    trainer.train()
    return trainer


def test_the_fused_head_is_found_and_equals_the_logits_path(configuration: Configuration) -> None:
    found = []
    for fused_head in ("true", "false"):
        student = lora_llama()
        before = {name: p.detach().clone() for name, p in student.named_parameters()}
        args = configuration(fused_head=fused_head, optim="sgd", learning_rate=0.2, logging_steps=1)
        trainer = trained(args, student)
        assert trainer.fused == (fused_head == "true")
        moved = {name for name, p in student.named_parameters() if not torch.equal(p, before[name])}
        assert moved and all("lora_" in name for name in moved)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        found.append((losses, adapter(student)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for name, value in found[0][1].items():
        torch.testing.assert_close(value, found[1][1][name], rtol=1e-4, atol=1e-6)


def test_an_adapted_head_uses_the_logits(configuration: Configuration) -> None:
    student = adapted(llama(0, tied=False), target_modules=["q_proj", "lm_head"])
    assert "not nn.Linear" in str(find_linear_head(student))
    assert not trained(configuration(), student).fused


def test_only_the_adapter_is_saved_and_it_fits_the_base(configuration: Configuration, tmp_path: Path) -> None:
    trainer = trained(configuration(save_strategy="steps", save_steps=4), lora_llama())
    trainer.save_model(str(tmp_path / "final"))
    ids = torch.tensor([[3, 4, 5, 6]])
    expected = trainer.student.eval()(ids).logits
    for folder in (tmp_path / "out" / "checkpoint-4", tmp_path / "final"):
        assert not (folder / "model.safetensors").exists()
        assert all("lora_" in name for name in load_file(folder / "adapter_model.safetensors"))
        again = peft.PeftModel.from_pretrained(llama(0), folder)
        torch.testing.assert_close(again.eval()(ids).logits, expected)
        assert not torch.allclose(llama(0)(ids).logits, expected, atol=1e-2)


def test_resuming_gives_the_adapter_of_an_uninterrupted_run(
    configuration: Configuration, tmp_path: Path
) -> None:
    def args(name: str, **more: Any) -> DistillationConfig:
        return configuration(output_dir=str(tmp_path / name), max_steps=6, **more)

    def student(seed: int) -> Any:
        return lora_llama(seed=seed, dropout=0.3)

    whole = adapter(trained(args("whole"), student(7)).student)
    trained(args("cut", save_strategy="steps", save_steps=3), student(7))
    again = DistillationTrainer(student(8), llama(1), args("cut"), train_dataset=rows(32))
    again.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    found = adapter(again.student)
    assert found.keys() == whole.keys() and len(found) > 0
    for name, value in found.items():
        assert torch.equal(value, whole[name]), name


def test_the_best_adapter_is_loaded(configuration: Configuration) -> None:
    args = configuration(
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_perplexity",
        greater_is_better=True,  # makes the first the best, so that it is not the last
    )
    trainer = trained(args, lora_llama(), eval_dataset=rows(6, seed=9))
    seen = [e["eval_perplexity"] for e in trainer.state.log_history if "eval_perplexity" in e]
    assert seen[-1] < max(seen)
    assert trainer.evaluate()["eval_perplexity"] == pytest.approx(max(seen), rel=1e-6)


def causal() -> tuple[Any, Any, Task, list[dict[str, Any]]]:
    return lora_llama(dropout=0.5), llama(0), CAUSAL, rows(3)


def gpt() -> tuple[Any, Any, Task, list[dict[str, Any]]]:
    student = adapted(gpt2(0), dropout=0.5, target_modules=["c_attn"], fan_in_fan_out=True)
    return student, gpt2(0), CAUSAL, rows(3)


def seq2seq() -> tuple[Any, Any, Task, list[dict[str, Any]]]:
    data = [{"input_ids": [5, 6, 7, 1], "labels": [8, 9, 1]}, {"input_ids": [9, 1], "labels": [3, 1]}]
    return adapted(t5(0), dropout=0.5, target_modules=["q", "v"]), t5(0), TASKS["seq2seq"], data


def classifier() -> tuple[Any, Any, Task, list[dict[str, Any]]]:
    student = adapted(bert(0), dropout=0.5, target_modules=["query", "value"], modules_to_save=["classifier"])
    with torch.no_grad():  # make the trained copy of the classifier differ from the base's
        for name, parameter in student.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(1.0)
    return student, bert(0), TASKS["classification"], class_rows()


@pytest.mark.parametrize("make", [causal, gpt, seq2seq, classifier])
@pytest.mark.parametrize("fused", [True, False])
def test_the_base_teacher_is_the_base_and_changes_nothing(make: Any, fused: bool) -> None:
    student, base, task, data = make()
    student.train()
    if task.name == "causal_lm":  # a frozen parameter must stay frozen
        next(p for p in student.parameters() if p.requires_grad).requires_grad_(False)
    batch = task.collate(data, 0)
    base.eval()
    expected = base(**task.model_inputs(base, batch)).logits
    with torch.no_grad():
        adapter_on = copy.deepcopy(student).eval()(**task.model_inputs(student, batch)).logits
    assert not torch.allclose(adapter_on, expected, atol=1e-2)

    before = [module.training for module in student.modules()]
    learns = {name: p.requires_grad for name, p in student.named_parameters()}
    teacher = BaseTeacher(student, task, fused and task.name != "classification")
    seen = []
    hook = student.register_forward_pre_hook(
        lambda *_: seen.append({name: p.requires_grad for name, p in student.named_parameters()})
    )
    for requested in (Requested(), Requested(hidden_states=True)):
        output = teacher(batch, requested)
        logits = multiply_out(output.distribution)
        assert not logits.requires_grad
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    hook.remove()
    assert seen == [learns, learns]  # requires_grad must not change, since FSDP relies on it
    assert [module.training for module in student.modules()] == before
    assert {name: p.requires_grad for name, p in student.named_parameters()} == learns
    with torch.no_grad():
        again = student.eval()(**task.model_inputs(student, batch)).logits
    torch.testing.assert_close(again, adapter_on)


def test_the_base_teacher_is_left_intact_by_an_error() -> None:
    student = lora_llama().train()
    teacher = BaseTeacher(student, CAUSAL, fused=True)
    learns = [p.requires_grad for p in student.parameters()]
    with pytest.raises(IndexError):
        teacher({"input_ids": torch.tensor([[10_000]]), "attention_mask": torch.ones(1, 1)})
    assert [p.requires_grad for p in student.parameters()] == learns
    assert all(module.training for module in student.modules())
    assert not student.base_model.model.model.layers[0].self_attn.q_proj.disable_adapters


def test_a_base_teacher_needs_an_adapter() -> None:
    with pytest.raises(ValueError, match="the student has none: set peft_config"):
        BaseTeacher(llama(0), CAUSAL, fused=True)


@pytest.mark.parametrize("fused_head", ["true", "false"])
def test_distilling_from_the_base_is_distilling_from_a_copy_of_it(
    configuration: Configuration, fused_head: str
) -> None:
    """The adapter's dropout draws the same random numbers in both runs, because a teacher draws none."""
    found = []
    for base in (True, False):
        student = lora_llama(dropout=0.3)
        teacher = BaseTeacher(student, CAUSAL, fused_head == "true") if base else llama(0)
        args = configuration(kd_ratio=0.8, logging_steps=1, fused_head=fused_head)
        trainer = trained(args, student, teacher, eval_dataset=rows(6, seed=9))
        logs = [(e["loss"], e["kd"]) for e in trainer.state.log_history if "kd" in e]
        found.append((logs, trainer.evaluate()["eval_kd"], adapter(student)))
    torch.testing.assert_close(torch.tensor(found[0][0]), torch.tensor(found[1][0]))
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)
    for name, value in found[0][2].items():
        torch.testing.assert_close(value, found[1][2][name], rtol=1e-4, atol=1e-6)


def test_the_base_teacher_with_matches_and_own_samples(configuration: Configuration) -> None:
    """On-policy samples, the base as the teacher, and matches with its hidden states work together."""
    data = [{**row, "labels": [-100, *row["input_ids"][1:]]} for row in rows(16)]
    logs = []
    for base in (True, False):
        student = lora_llama()
        teacher = BaseTeacher(student, CAUSAL, True) if base else llama(0)
        args = configuration(
            lmbda=1.0,
            max_completion_length=4,
            feature_matches=[{"student": 1, "teacher": 1}],
            gradient_match_weight=0.5,
            logging_steps=1,
        )
        trainer = trained(args, student, teacher, train_dataset=data)
        names = ("loss", "kd", "feature_hidden", "saliency")
        logs.append(
            torch.tensor([[e[name] for name in names] for e in trainer.state.log_history if "kd" in e])
        )
        assert (logs[-1] > 0).all()
    torch.testing.assert_close(*logs, rtol=1e-4, atol=1e-6)


def test_gradient_checkpointing(configuration: Configuration) -> None:
    found = [
        adapter(trained(configuration(gradient_checkpointing=on), lora_llama()).student)
        for on in (False, True)
    ]
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-5, atol=1e-7)


def test_from_the_configuration(configuration: Configuration, tmp_path: Path) -> None:
    llama(0).save_pretrained(tmp_path / "model")
    fields: dict[str, Any] = {"model": str(tmp_path / "model"), "teacher": "base"}
    args = configuration(peft_config={"r": 2, "target_modules": ["q_proj"]}, **fields)
    student = load_student(args)
    assert isinstance(student, peft.PeftModelForCausalLM)
    assert all("lora_" in name for name in adapter(student))
    assert isinstance(load_teacher(args, student), BaseTeacher)
    again = load_student(args)  # the same seed gives the same adapter
    for name, value in adapter(student).items():
        assert torch.equal(value, adapter(again)[name])
    for config, message in (
        ({"rank": 2}, "peft_config does not fit: .*rank"),
        ({"r": 2, "target_modules": ["nowhere"]}, "peft_config does not fit: .*nowhere"),
        ({"peft_type": "LROA"}, "peft_config does not fit"),
        (3, "peft_config must be a mapping"),
    ):
        with pytest.raises(ValueError, match=message):
            load_student(configuration(peft_config=config, **fields))


@pytest.fixture
def adapter_directory(tmp_path: Path, configuration: Configuration) -> str:
    """The result of a run that trained an adapter on ``tmp_path/base``."""
    llama(0).save_pretrained(tmp_path / "base")
    args = configuration(
        model=str(tmp_path / "base"),
        peft_config={"r": 2, "target_modules": ["q_proj", "v_proj"]},
        output_dir=str(tmp_path / "lora"),
        learning_rate=0.1,
    )
    trained(args, load_student(args)).save_model()
    return str(tmp_path / "lora")


def test_an_adapter_directory_is_trained_further(
    adapter_directory: str, configuration: Configuration, tmp_path: Path
) -> None:
    args = configuration(model=adapter_directory, learning_rate=0.1)
    before = load_file(Path(adapter_directory) / "adapter_model.safetensors")
    student = load_student(args)
    assert {name for name, p in student.named_parameters() if p.requires_grad} == set(adapter(student))
    ids = torch.tensor([[3, 4, 5, 6]])
    measured = load_student(args, trained=True)
    assert not any(p.requires_grad for p in measured.parameters())
    torch.testing.assert_close(student.eval()(ids).logits, measured(ids).logits)
    trained(args, student).save_model(str(tmp_path / "again"))
    after = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert not any(torch.equal(value, after[name]) for name, value in before.items())


def test_an_adapter_directory_as_the_teacher(adapter_directory: str, configuration: Configuration) -> None:
    args = configuration(teacher=adapter_directory)
    teacher = load_teacher_model(args)
    trainer = trained(args, llama(2), teacher)
    assert trainer.state.global_step == 4 and not any(p.requires_grad for p in teacher.parameters())
    ids = torch.tensor([[3, 4, 5, 6]])
    student = load_student(configuration(model=adapter_directory), trained=True)
    torch.testing.assert_close(teacher(ids).logits, student(ids).logits)


def test_an_adapter_over_a_new_classification_head(configuration: Configuration, tmp_path: Path) -> None:
    """The head is saved with the adapter, so the model under it need not have one."""
    bert(0).bert.save_pretrained(tmp_path / "encoder")
    fields = {"task": "classification", "class_names": ["a", "b", "c", "d", "e"]}
    args = configuration(
        **fields,
        model=str(tmp_path / "encoder"),
        peft_config={"r": 2, "target_modules": ["query"]},
        kd_ratio=0.0,
    )
    student = load_student(args)
    trainer = DistillationTrainer(student, None, args, train_dataset=class_rows())
    trainer.train()
    trainer.save_model(str(tmp_path / "lora"))
    again = load_student(configuration(**fields, model=str(tmp_path / "lora")), trained=True)
    teacher = load_teacher_model(configuration(**fields, teacher=str(tmp_path / "lora")))
    ids = torch.tensor([[3, 4, 5]])
    for model in (again, teacher):
        torch.testing.assert_close(model(ids).logits, student.eval()(ids).logits)


def test_adapter_directories_that_do_not_fit(
    adapter_directory: str, configuration: Configuration, tmp_path: Path
) -> None:
    args = configuration(model=adapter_directory, teacher=adapter_directory)
    path = Path(adapter_directory) / "adapter_model.safetensors"
    whole = load_file(path)
    save_file({name: value for name, value in whole.items() if "v_proj" not in name}, path)
    for load, side in ((load_student, "model"), (load_teacher_model, "teacher")):
        with pytest.raises(ValueError, match=f"^{side} .*2 of the adapter's 4 weights are missing.*v_proj"):
            load(args)
    path.unlink()
    with pytest.raises(ValueError, match=r"has no adapter_model\.safetensors"):
        load_student(args)
    save_file(whole, path)
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(ValueError, match=r"model '.*base' could not be loaded: there is no such directory"):
        load_student(args)


def test_settings_of_an_adapter_that_contradict_each_other(
    adapter_directory: str, configuration: Configuration, tmp_path: Path
) -> None:
    base = str(tmp_path / "base")
    lora = {"r": 2, "target_modules": ["q_proj"]}
    for fields, message in (
        ({"model": adapter_directory, "peft_config": lora}, "is an adapter already"),
        ({"model": adapter_directory, "model_init": "scratch"}, "random weights under it"),
        ({"model": base, "peft_config": lora, "model_init": "scratch"}, "random weights under it"),
        ({"model": base, "teacher": "base"}, "teacher: base is the student without its adapter"),
    ):
        with pytest.raises(ValueError, match=message):
            load_student(configuration(**fields))
