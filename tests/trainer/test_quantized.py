"""Test quantised students and teachers (QLoRA), where bitsandbytes is installed and runs on this machine."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.tiny import VOCAB, llama, rows
from transformers import LlamaConfig, LlamaForCausalLM

peft = pytest.importorskip("peft")

from fastkd.trainer import DistillationConfig, DistillationTrainer  # noqa: E402
from fastkd.trainer.loading import load_student, load_teacher_model  # noqa: E402
from fastkd.trainer.quantized import keep_differentiable  # noqa: E402

Configuration = Callable[..., DistillationConfig]
FOUR_BITS = {"quantization_config": {"load_in_4bit": True, "bnb_4bit_compute_dtype": "float32"}}
LORA = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "down_proj"]}


@pytest.fixture
def wide(tmp_path: Path) -> str:
    """The directory of a model whose layers are wide enough for blocks of 4-bit weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=False, bos_token_id=0,
        eos_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "wide")
    return str(tmp_path / "wide")


def test_an_adapter_on_a_quantised_student_is_trained(configuration: Configuration, wide: str) -> None:
    """The adapter learns even after an evaluation, in which layers of bitsandbytes lose their gradient."""
    pytest.importorskip("bitsandbytes")
    fields = {"model_init_kwargs": FOUR_BITS, "peft_config": LORA, "learning_rate": 0.01, "max_steps": 20}
    args = configuration(model=wide, **fields)
    student = load_student(args)
    assert type(student.get_base_model().model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    before = {name: p.detach().clone() for name, p in student.named_parameters() if p.requires_grad}
    assert before and all("lora_" in name for name in before)
    trainer = DistillationTrainer(student, llama(1), args, train_dataset=rows(32), eval_dataset=rows(32))
    first = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = dict(student.named_parameters())
    assert not any(torch.equal(after[name], p) for name, p in before.items() if "lora_B" in name)
    assert trainer.evaluate()["eval_loss"] < 0.95 * first
    trainer.save_model()
    out = Path(str(args.output_dir))
    assert all("lora_" in name for name in load_file(out / "adapter_model.safetensors"))

    # The saved adapter, on the same quantised base, is the trained student, and can be trained further.
    named = configuration(model=str(out), model_init_kwargs=FOUR_BITS)
    again, ids = load_student(named, trained=True), torch.tensor([[3, 4, 5, 6]])
    keep_differentiable(again)  # the same arithmetic as in training, in float32
    torch.testing.assert_close(again(ids).logits, student.eval()(ids).logits)
    assert any(p.requires_grad for p in load_student(named).parameters())


def test_a_quantised_teacher(configuration: Configuration, wide: str) -> None:
    pytest.importorskip("bitsandbytes")
    teacher = load_teacher_model(configuration(teacher=wide, teacher_model_init_kwargs=FOUR_BITS))
    trainer = DistillationTrainer(llama(0), teacher, configuration(), train_dataset=rows(8))
    trainer.train()
    assert trainer.state.global_step == 4


def test_a_quantised_student_can_be_measured(configuration: Configuration, wide: str) -> None:
    """A model is evaluated without an adapter, which only training needs."""
    pytest.importorskip("bitsandbytes")
    args = configuration(model=wide, model_init_kwargs=FOUR_BITS)
    student = load_student(args, trained=True)
    trainer = DistillationTrainer(student, llama(1), args, eval_dataset=rows(8))
    assert trainer.evaluate()["eval_loss"] > 0


def quantised(model: Any, is_trainable: bool = True) -> Any:
    """A plain model that says of itself what a quantised one says."""
    model.is_quantized = True
    model.hf_quantizer = types.SimpleNamespace(is_trainable=is_trainable, is_qat_trainable=False)
    return model


def test_quantised_weights_alone_are_refused(configuration: Configuration, wide: str) -> None:
    with pytest.raises(ValueError, match="quantised weights do not learn: set peft_config"):
        DistillationTrainer(quantised(llama(0)), llama(1), configuration(), train_dataset=rows(4))
    with pytest.raises(ValueError, match="quantised weights do not learn"):
        load_student(configuration(model=wide, model_init_kwargs=FOUR_BITS))


def test_an_adapter_on_a_quantised_model_is_accepted(configuration: Configuration) -> None:
    student = peft.get_peft_model(quantised(llama(0)), peft.LoraConfig(target_modules=["q_proj"]))
    trainer = DistillationTrainer(student, llama(1), configuration(), train_dataset=rows(8))
    trainer.train()
    assert trainer.state.global_step == 4
    untrainable = quantised(llama(0), is_trainable=False)
    student = peft.get_peft_model(untrainable, peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="cannot be trained, with an adapter neither"):
        DistillationTrainer(student, llama(1), configuration(), train_dataset=rows(8))
