"""Test the doctor's findings about settings, and that their remedies remove them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.doctor import look
from support.fake_vllm import installed
from support.families import gpt2

from fastkd.runs.doctor import Finding


def test_nothing_is_found_in_a_healthy_configuration(healthy_findings: dict[str, Finding]) -> None:
    # These appear on a machine with a GPU that is not used, or that torch cannot see.
    assert set(healthy_findings) <= {"gpu_unused", "gpu_unseen"}


ADAPTER = {"peft_type": "LORA", "r": 4}
FOUR_BITS = {"quantization_config": {"load_in_4bit": True}}

FEATURES = [{"student": -1, "teacher": -1, "kind": "hidden", "loss": "mse", "weight": 1.0}]

SAMPLED = {"objective": "sampled", "lmbda": 1.0}
ENGINE = {"sampler": "vllm", "lmbda": 0.5}


@pytest.mark.parametrize(
    ("fields", "name", "severity", "words"),
    [
        ({"teacher": None}, "no_teacher", "note", "kd_ratio: 0.5"),
        ({"kd_ratio": 0.0, "temperature": 2.0}, "teacher_unused", "warning", "temperature: 2.0 does nothing"),
        ({"teacher": None, "divergence": "reverse_kl"}, "idle_options", "warning", "reverse_kl"),
        ({"kd_ratio": 1.0, "label_smoothing_factor": 0.1}, "smoothing_unused", "warning", "0.1"),
        ({"temperature": 2.0, "teacher_temperature": 2.0}, "same_temperature", "note", "2.0"),
        ({"temperature": 64.0}, "hot", "warning", "4,096"),
        ({"divergence": "jsd", "beta": 0.0}, "beta_at_its_end", "note", "is forward_kl"),
        ({"divergence": "jsd", "beta": 1.0}, "beta_at_its_end", "note", "is reverse_kl"),
        ({"divergence": "skew_forward_kl", "beta": 0.0}, "beta_at_its_end", "note", "is forward_kl"),
        ({"lmbda": 0.5, "teacher": "cache:c"}, "lmbda_with_cache", "error", "lmbda: 0.5"),
        ({"lmbda": 0.5, "task": "classification"}, "lmbda_without_text", "error", "write text"),
        ({"lmbda": 0.5, "teacher": None}, "lmbda_without_teacher", "error", "teacher"),
        ({"lmbda": 0.5, "kd_ratio": 0.0}, "lmbda_without_kd", "warning", "50 %"),
        ({"lmbda": 0.5, "packing": True}, "lmbda_with_packing", "error", "packing"),
        ({"objective": "sampled", "lmbda": 0.5}, "sampled_without_samples", "error", "lmbda is 0.5"),
        ({**SAMPLED, "divergence": "jsd"}, "sampled_divergence", "error", "reverse KL"),
        ({**SAMPLED, "temperature": 2.0}, "sampled_divergence", "error", "temperature 1"),
        ({**SAMPLED, "sampling_temperature": 0.7}, "sampled_from_another", "error", "drawn"),
        ({**SAMPLED, "generation_kwargs": {"top_k": 5}}, "sampled_from_another", "error", "drawn"),
        ({**SAMPLED, "gradient_match_weight": 0.1}, "sampled_with_matches", "error", "no layers"),
        ({"sampling_steps": 2}, "sampling_steps_without_samples", "error", "lmbda: 0 has none"),
        ({"lmbda": 0.5, "sampler_kwargs": {"seed": 1}}, "sampler_kwargs_without_engine", "error", "vLLM"),
        ({"sampler": "vllm"}, "vllm_without_samples", "error", "lmbda: 0 has none"),
        ({**SAMPLED, "sampling_steps": 2}, "sampled_from_older_weights", "error", "student of now"),
        ({**ENGINE, "task": "seq2seq"}, "vllm_task", "error", "for causal_lm"),
        ({**ENGINE, "generation_kwargs": {"typical_p": 0.5}}, "vllm_generation_kwargs", "error", "typical_p"),
        ({**ENGINE, "model_init_kwargs": FOUR_BITS}, "vllm_quantised", "error", "not quantised"),
        ({**ENGINE, "sampler_kwargs": {"seed": 1}}, "sampler_kwargs_taken", "error", "seed"),
        ({**ENGINE, "fsdp": "full_shard"}, "vllm_sharded", "error", "divide them"),
        ({"teacher": "self"}, "self_without_difference", "error", "nothing to teach"),
        ({"teacher": "cache:c", "teacher_prompt": "{prompt}"}, "prompt_without_reader", "error", "a cache"),
        ({"teacher_prompt": "{prompt}", "packing": True}, "prompt_without_prompts", "error", "packed"),
        (
            {"teacher_prompt": "{prompt}", "gradient_match_weight": 1.0},
            "prompt_with_matches",
            "error",
            "layers",
        ),
        ({"feature_matches": FEATURES, "teacher": "cache:c"}, "insides_without_model", "error", "cache:c"),
        (
            {"gradient_match_weight": 1.0, "teacher": None, "kd_ratio": 0.0},
            "insides_without_model",
            "error",
            "no teacher",
        ),
        (
            {"model": "teacher", "model_init": "pretrained"},
            "teacher_is_student",
            "warning",
            "both teacher",
        ),
        ({"peft_config": ADAPTER}, "adapter_on_noise", "error", "random weights"),
        ({"teacher": "base"}, "base_without_adapter", "error", "base"),
        (
            {"model": "teacher", "model_init": "pretrained", "model_init_kwargs": FOUR_BITS},
            "quantised_without_adapter",
            "error",
            "do not learn",
        ),
        ({"model_init_kwargs": {"dtype": "bfloat16"}}, "student_in_16_bits", "warning", "bfloat16"),
        ({"task": "classification", "fused_head": "true"}, "fused_classifier", "error", "fused_head"),
        ({"control": True, "kd_ratio": 0.0}, "control_of_nothing", "warning", "control"),
        ({"learning_rate": 0.0}, "learning_rate", "error", "learning_rate: 0"),
        ({"warmup_steps": 50, "max_steps": 40}, "warmup", "warning", "40 steps"),
        ({"fp16": True}, "fp16_on_cpu", "error", "fp16"),
        ({"eval_strategy": "epoch", "eval_file": None}, "evaluation_without_data", "error", "eval_strategy"),
        ({"save_strategy": "no", "max_steps": 5000}, "nothing_to_resume", "warning", "5,000 steps"),
        ({"save_steps": 9000, "max_steps": 5000}, "nothing_to_resume", "warning", "save_steps: 9000"),
        ({"train_file": None}, "no_data", "error", "no training data"),
        ({"train_file": "nope.txt"}, "unreadable_train_file", "error", "nope.txt"),
        ({"teacher": "nowhere"}, "unreadable_teacher", "error", "nowhere"),
        ({"packing": True}, "packed_prompts", "note", "have labels"),
        ({"max_length": 4}, "prompts_fill_the_window", "warning", "max_length is 4"),
        ({"max_length": 100}, "student_window", "note", "32 positions"),
        ({"teacher": "cache:none"}, "cache", "error", "there is no cache in none"),
    ],
)
def test_settings(
    place: Path,
    healthy_findings: dict[str, Finding],
    fields: dict[str, Any],
    name: str,
    severity: str,
    words: str,
) -> None:
    (place / "nowhere").mkdir()
    found = look(**fields)
    assert name in found and name not in healthy_findings
    assert found[name].severity == severity
    assert words in found[name].found
    assert found[name].remedy or severity == "note" or name.startswith(("unreadable", "cache"))


def test_remedies_remove_their_finding(place: Path) -> None:
    """Each finding's remedy names a setting with which the finding disappears."""
    assert look(max_length=4)["prompts_fill_the_window"].remedy == "raise max_length to 12"
    assert "prompts_fill_the_window" not in look(max_length=12)
    assert look(max_length=100)["student_window"].remedy == "set max_length: 32"
    assert "student_window" not in look(max_length=32)
    assert look(warmup_steps=50, max_steps=40)["warmup"].remedy == "set warmup_steps to about 2"
    assert "warmup" not in look(warmup_steps=2, max_steps=40)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_an_engine_that_is_not_installed(place: Path) -> None:
    assert look(**ENGINE)["vllm_missing"].severity == "error"


def test_a_student_that_vllm_has_no_implementation_of(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    assert not {"vllm_missing", "vllm_architecture"} & set(look(**ENGINE))
    gpt2(0).config.save_pretrained("student")
    found = look(**ENGINE)["vllm_architecture"]
    assert found.severity == "warning" and "GPT2LMHeadModel" in found.found
    assert "vllm_architecture" not in look(lmbda=0.5)
