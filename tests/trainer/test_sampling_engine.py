"""Test sampling with vLLM, for which a stand-in answers: weights, draws, refusals and the global state."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from support import fake_vllm
from support.families import gpt2, t5
from support.on_policy import GREEDY, pairs, policy, prompted, resampled, trained, weights
from support.tiny import VOCAB, llama

from fastkd.trainer import DistillationConfig, DistillationTrainer
from fastkd.trainer.sampling.weights import checkpoint_weights

Configuration = Callable[..., DistillationConfig]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> type[fake_vllm.LLM]:
    return fake_vllm.installed(monkeypatch)


@pytest.fixture
def sampling(configuration: Configuration, engine: Any) -> Configuration:
    def make(**fields: Any) -> DistillationConfig:
        usual = {"lmbda": 1.0, "sampler": "vllm", "max_length": 16, "max_completion_length": 5}
        return configuration(**{**usual, **fields})

    return make


def adapted(seed: int, tied: bool = False, **fields: Any) -> Any:
    """A Llama with an adapter that is not zero."""
    made = get_peft_model(llama(seed, tied=tied), LoraConfig(r=2, **fields))
    for name, value in made.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, std=0.5)
    return made


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_run_is_that_of_generate(
    sampling: Configuration, engine: Any, configuration: Configuration, accumulation: int
) -> None:
    """Near temperature 0, where both samplers give the greedy answers, training gives the same weights. They
    are pushed before each sampling, of which there is one per step, whatever its number of batches.
    """
    fields = {"sampling_temperature": GREEDY, "gradient_accumulation_steps": accumulation}
    fields |= {"lmbda": 0.6, "max_steps": 5, "per_device_train_batch_size": 3}
    ours, theirs = trained(configuration(max_completion_length=5, **fields)), trained(sampling(**fields))
    for name, value in weights(ours).items():
        assert torch.equal(value, weights(theirs)[name]), name
    (made,) = engine.made
    due = sum(theirs._on_policy.is_due(step) for step in range(5))
    assert 0 < due < 5
    assert made.did == ["push", "reset", *["push", "reset", "generate"] * due, "shutdown"]
    assert {len(asked) for asked, _ in made.asked} == {3 * accumulation}
    assert any("sampling_seconds" in entry for entry in theirs.state.log_history)


def test_the_weights_are_those_of_a_checkpoint(sampling: Configuration) -> None:
    """With an adapter the engine gets merged weights, and the student keeps its own to the bit."""
    student = adapted(0, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"])
    torch.nn.init.normal_(student.base_model.model.lm_head.modules_to_save["default"].weight)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    found = {name: value.clone() for name, value in checkpoint_weights(student)}
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(value.requires_grad for value in found.values())
    expected = student.merge_and_unload().state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
    assert not torch.equal(expected["model.layers.0.self_attn.q_proj.weight"], before[
        "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"
    ])  # fmt: skip


def test_an_adapter_is_sampled_from(sampling: Configuration, engine: Any) -> None:
    args, data = sampling(sampling_temperature=GREEDY), prompted(6)
    student = adapted(0, target_modules=["q_proj", "v_proj"])
    plain = DistillationConfig(output_dir=args.output_dir, use_cpu=True, lmbda=1.0, max_completion_length=5)
    plain.sampling_temperature = GREEDY
    ours, theirs = (one_batch(student, each, data) for each in (plain, args))
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    assert not torch.equal(ours["input_ids"], one_batch(llama(0, tied=False), plain, data)["input_ids"])


def one_batch(student: Any, args: DistillationConfig, data: list[dict[str, Any]], **more: Any) -> Any:
    """A batch with the student's answers to the prompts of ``data``, as a step gets it."""
    made = policy(args, **more)
    batch = made.task.collate(data, 0)
    (found,) = made.batches(iter([batch]), 1, student, student, 0, 1)
    return found


def test_draws_follow_seed_temperature_and_options(sampling: Configuration, engine: Any) -> None:
    data, options = prompted(6), {"top_p": 0.9, "top_k": 7, "suppress_tokens": [3]}
    args = sampling(sampling_temperature=0.5, generation_kwargs=options)
    first, again = (one_batch(llama(0), args, data) for _ in range(2))
    other = one_batch(llama(0), sampling(sampling_temperature=0.5, seed=7), data)
    assert torch.equal(first["input_ids"], again["input_ids"])
    assert first["input_ids"].tolist() != other["input_ids"].tolist()
    given = engine.made[0].asked[0][1]
    assert len({one.seed for one in given}) == 6
    for one in given:
        assert (one.temperature, one.top_p, one.top_k) == (0.5, 0.9, 7) and not hasattr(one, "min_p")
        assert one.allowed_token_ids == [token for token in range(VOCAB) if token != 3]
        assert one.stop_token_ids == [0] and one.ignore_eos
    cold = sampling(sampling_temperature=0.009)
    one_batch(llama(0), cold, data)
    assert engine.made[-1].asked[0][1][0].temperature == 0


def test_columns_that_the_teacher_lacks_are_never_drawn(sampling: Configuration, engine: Any) -> None:
    args = sampling(sampling_temperature=50.0, max_completion_length=12)
    found = one_batch(llama(0), args, prompted(8), teacher=llama(1, vocab=VOCAB - 10))
    assert VOCAB - 20 < found["labels"].max() < VOCAB - 10


def test_an_answer_ends_with_the_students_end_and_within_its_window(sampling: Configuration) -> None:
    student = llama(0)
    student.generation_config.eos_token_id = [0, *range(1, VOCAB, 3)]
    labels = one_batch(student, sampling(max_completion_length=30), prompted(8))["labels"]
    for row in labels:
        said = row[row != -100].tolist()
        assert said[-1] in student.generation_config.eos_token_id or len(said) == 30
        assert not set(said[:-1]) & set(student.generation_config.eos_token_id)
    student.generation_config.eos_token_id = None
    found = one_batch(student, sampling(max_completion_length=99, max_length=99), prompted(8))
    assert found["attention_mask"].sum(1).tolist() == [32] * 8  # each prompt has its own room
    with pytest.raises(ValueError, match="a prompt has 3 tokens and vLLM's engine has room for 3"):
        one_batch(student, sampling(sampler_kwargs={"max_model_len": 3}), prompted(8))


def test_no_global_random_state_moves(sampling: Configuration) -> None:
    student, teacher, data, args = llama(0), llama(1), prompted(4), sampling()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    one_batch(student, args, data, teacher=teacher)
    assert torch.equal(before[0], torch.get_rng_state()) and random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


def test_the_engine_gets_the_students_precision_and_the_callers_arguments(
    sampling: Configuration, engine: Any
) -> None:
    trained(sampling(bf16=True))
    trained(sampling(sampler_kwargs={"kv_cache_memory_bytes": 4096, "dtype": "float16", "max_model_len": 20}))
    mixed, own = (made.given for made in engine.made)
    assert (mixed["dtype"], mixed["max_model_len"], mixed["gpu_memory_utilization"]) == ("bfloat16", 21, 0.3)
    assert (own["dtype"], own["max_model_len"], own["kv_cache_memory_bytes"]) == ("float16", 20, 4096)
    assert "gpu_memory_utilization" not in own


def first_step(args: DistillationConfig, student: Any) -> None:
    """Train, where the first step must not be reached."""
    trainer = DistillationTrainer(student, llama(1), args, train_dataset=prompted(8))
    trainer.training_step = lambda *_: pytest.fail("a step was made")
    trainer.train()


@pytest.mark.parametrize(
    ("student", "fields", "message"),
    [
        (lambda: gpt2(0), {}, r"\(Model architectures \['GPT2LMHeadModel'\] are not supported for now\)"),
        (lambda: llama(0), {"sampler_kwargs": {"nonsense": 1}}, "unexpected keyword argument 'nonsense'"),
        (lambda: adapted(0, True, target_modules=["lm_head"]), {}, "shares its weight with another layer"),
        (
            lambda: adapted(0, target_modules=["q_proj"], trainable_token_indices=[1]),
            {},
            "cannot be merged into a weight",
        ),
        (lambda: llama(0), {"generation_kwargs": {"typical_p": 0.5}}, "typical_p, which vLLM does not know"),
        (lambda: llama(0), {"sampler_kwargs": {"load_format": "auto"}}, "load_format, which fastkd sets"),
    ],
)
def test_refused_before_the_first_step(
    sampling: Configuration, student: Any, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        first_step(sampling(lmbda=0.01, **fields), student())


def test_an_engine_with_other_probabilities_is_refused(
    sampling: Configuration, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "wrong", True)
    with pytest.raises(ValueError, match="vLLM computes other probabilities than the student"):
        first_step(sampling(), llama(0))
    assert engine.made[0].did[-1] == "shutdown"


def test_encoder_decoders_are_refused(sampling: Configuration) -> None:
    with pytest.raises(ValueError, match="vLLM cannot run the models of seq2seq"):
        DistillationTrainer(t5(0), t5(1), sampling(task="seq2seq"), train_dataset=pairs(4))


def test_quantised_weights_are_refused(sampling: Configuration) -> None:
    student = llama(0)
    student.is_quantized = True
    with pytest.raises(ValueError, match="whose weights are not quantised"):
        resampled(student, sampling(), prompted(4))
