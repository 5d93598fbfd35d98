"""Test that a mixture of experts is trained with the losses of its routers, as its config asks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from support.families import pair_rows
from support.tiny import VOCAB, llama, rows

from fastkd.trainer import DistillationTrainer


def mixtral(coefficient: float = 10.0, asked: bool = True) -> Any:
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        output_router_logits=asked,
        router_aux_loss_coef=coefficient,
        initializer_range=0.3,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.MixtralForCausalLM(config)


def switch() -> Any:
    torch.manual_seed(0)
    config = transformers.SwitchTransformersConfig(
        vocab_size=VOCAB,
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=2,
        num_sparse_encoder_layers=1,
        num_decoder_layers=2,
        num_sparse_decoder_layers=1,
        num_heads=2,
        num_experts=4,
        router_jitter_noise=0.0,
        dropout_rate=0.0,
        router_aux_loss_coef=5.0,
        router_z_loss_coef=3.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    config.output_router_logits = True
    return transformers.SwitchTransformersForConditionalGeneration(config)


def gates(model: Any) -> torch.Tensor:
    found = [p.grad for name, p in model.named_parameters() if "gate.weight" in name or "classifier" in name]
    assert found
    return torch.cat([grad.flatten() for grad in found])


@pytest.mark.parametrize("fused", ["auto", "false"])
@pytest.mark.parametrize("make", [mixtral, switch])
def test_as_transformers_computes_it(make: Any, fused: str, configuration: Any) -> None:
    """Without a teacher, loss and gradients are those of the plain model."""
    task = "seq2seq" if make is switch else "causal_lm"
    data = pair_rows() if make is switch else rows(4, shortest=9, longest=9)  # padding is not masked alike
    trainer = DistillationTrainer(make(), None, configuration(task=task, kd_ratio=0.0, fused_head=fused))
    batch = trainer.data_collator(data)
    loss = trainer.model.train()(**batch)["loss"]
    loss.backward()
    plain = make().train()
    expected = plain(**batch).loss
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gates(trainer.student), gates(plain), rtol=1e-4, atol=1e-6)


def test_only_if_the_config_asks(configuration: Any) -> None:
    batch = None
    losses = []
    for model in (mixtral(10.0, asked=False), mixtral(0.0), mixtral(10.0)):
        trainer = DistillationTrainer(model, llama(1), configuration())
        batch = batch or trainer.data_collator(rows(4))
        losses.append(trainer.model.train()(**batch)["loss"].item())
    assert losses[0] == losses[1] < losses[2] - 1


def test_micro_batches_share_one_loss(configuration: Any) -> None:
    """The loss of two equal micro-batches is that of one of them, not twice that."""
    trainer = DistillationTrainer(mixtral(), llama(1), configuration())
    batch = trainer.data_collator(rows(4))
    targets = (batch["labels"][:, 1:] != -100).sum()
    whole = trainer.model.train()(**batch)["loss"]
    half = trainer.model(**batch, num_items_in_batch=2 * targets)["loss"]
    assert 2 * half.item() == pytest.approx(whole.item(), rel=1e-6)


def test_the_log_has_it(configuration: Any) -> None:
    args = configuration(logging_steps=1, max_steps=1, learning_rate=0.0, gradient_accumulation_steps=2)
    trainer = DistillationTrainer(mixtral(), llama(1), args, train_dataset=Dataset.from_list(rows(8)))
    trainer.train()
    (entry,) = (entry for entry in trainer.state.log_history if "loss" in entry)
    kd_and_ce = 0.5 * entry["kd"] + 0.5 * entry["ce"]
    assert entry["aux_loss"] > 0.5
    assert entry["loss"] == pytest.approx(kd_and_ce + 10.0 * entry["aux_loss"], rel=1e-4)


def test_an_on_policy_run_generates(configuration: Any) -> None:
    """A model that returns router logits would fail in generate, once its keys are cached."""
    data = [{"input_ids": r["input_ids"], "labels": [-100, -100, *r["input_ids"][2:]]} for r in rows(8)]
    args = configuration(lmbda=1.0, max_steps=1, max_completion_length=4, logging_steps=1)
    trainer = DistillationTrainer(mixtral(), llama(1), args, train_dataset=Dataset.from_list(data))
    trainer.train()
    assert trainer.state.log_history[0]["aux_loss"] > 0
