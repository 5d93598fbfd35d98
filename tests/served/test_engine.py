"""Test sampling with a real engine of vLLM, in an interpreter that has both vLLM and fastkd."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support import stored
from support.families import gpt2
from support.on_policy import GREEDY, policy, prompted, trained, weights
from support.tiny import VOCAB, llama
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from fastkd.cli import main
from fastkd.trainer import DistillationConfig

pytestmark = [
    pytest.mark.served,
    pytest.mark.skipif(find_spec("vllm") is None, reason="this interpreter has no vLLM: make test-served"),
]

ROOT = Path(__file__).parents[2]
ENGINE = {"enforce_eager": True, "kv_cache_memory_bytes": 1 << 26}


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., DistillationConfig]:
    def make(sampler: str = "vllm", **fields: Any) -> DistillationConfig:
        usual: dict[str, Any] = {
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
            "report_to": "none",
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 4,
            "max_steps": 5,
            "logging_steps": 1,
            "lmbda": 1.0,
            "sampling_temperature": GREEDY,
            "max_length": 24,
            "max_completion_length": 8,
            "sampler": sampler,
            "sampler_kwargs": ENGINE if sampler == "vllm" else None,
        }
        return DistillationConfig(**{**usual, **fields})

    return make


def small(seed: int, **options: Any) -> Any:
    return llama(seed, **{"hidden": 64, "positions": 128, "layers": 2, **options})


def adapted(**options: Any) -> Any:
    model = get_peft_model(small(0, tied=False), LoraConfig(r=2, **options))
    for name, value in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, std=0.3)
    return model


def qwen3() -> Any:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**_shape(), head_dim=32, tie_word_embeddings=True))


def mixture() -> Any:
    torch.manual_seed(0)
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**_shape(), **experts, head_dim=32, decoder_sparse_step=1))


def _shape() -> dict[str, Any]:
    return {
        "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
    }  # fmt: skip


STUDENTS: dict[str, Callable[[], Any]] = {
    "tied": lambda: small(0),
    "untied": lambda: small(0, tied=False),
    "a window of 32 positions": lambda: gpt2(0, hidden=64, layers=2),
    "names as in files": qwen3,
    "lora": lambda: adapted(target_modules=["q_proj", "v_proj", "down_proj"]),
    "dora and a trained head": lambda: adapted(
        target_modules=["k_proj", "up_proj"], use_dora=True, modules_to_save=["lm_head"]
    ),
}


@pytest.mark.parametrize("name", STUDENTS)
def test_greedy_answers_are_those_of_generate(settings: Callable[..., DistillationConfig], name: str) -> None:
    """Before and after the weights have changed, with one engine."""
    student, data = STUDENTS[name](), prompted(8)
    ours, theirs = (policy(settings(sampler), small(1)) for sampler in ("transformers", "vllm"))
    batch = ours.task.collate(data, 0)
    before: Any = None
    for step in range(3):
        kept = {key: value.clone() for key, value in student.state_dict().items()}
        found, expected = (
            next(each.batches(iter([batch]), 1, student, student, step, 9))["input_ids"].tolist()
            for each in (theirs, ours)
        )
        assert found == expected and found != before
        assert all(torch.equal(kept[key], value) for key, value in student.state_dict().items())
        before = found
        with torch.no_grad():
            for value in student.parameters():
                if value.requires_grad:
                    value.add_(torch.randn_like(value), alpha=0.1)
    theirs.close()
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("fields", [{}, {"sampling_steps": 2, "gradient_accumulation_steps": 2}])
def test_a_run_is_that_of_generate(
    settings: Callable[..., DistillationConfig], fields: dict[str, Any]
) -> None:
    """Training gives the same weights to the bit, since the greedy answers are the same."""
    ours, theirs = (
        weights(trained(settings(sampler, **fields, lmbda=0.7), small(0), teacher=small(1)))
        for sampler in ("transformers", "vllm")
    )
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def test_draws_have_the_students_distribution(settings: Callable[..., DistillationConfig]) -> None:
    """At temperature 2, without the tokens that the teacher lacks; the seed decides the draws."""
    student, prompt, count, known = small(0), [7, 3], 2000, VOCAB - 8
    data = [{"input_ids": [*prompt, 5], "labels": [-100, -100, 5]}] * count
    args = settings(sampling_temperature=2.0, max_completion_length=1)
    made = policy(args, small(1, vocab=known))
    batch = made.task.collate(data, 0)

    def drawn(step: int) -> torch.Tensor:
        found = next(made.batches(iter([batch]), 1, student, student, step, 9))["labels"]
        return found[found != -100]

    first, again, other = drawn(0), drawn(0), drawn(1)
    made.close()
    assert torch.equal(first, again) and not torch.equal(first, other)
    with torch.no_grad():
        p = (student(torch.tensor([prompt])).logits[0, -1, :known] / 2).softmax(-1)
    assert first.max() < known
    found = torch.bincount(first, minlength=known) / count
    assert (found - p).abs().sum() / 2 < 0.08  # about 0.04 by chance


def test_an_engine_that_computes_something_else_is_refused(
    settings: Callable[..., DistillationConfig],
) -> None:
    """vLLM's build for CPUs does not replace the experts of a mixture, which it has packed."""
    with pytest.raises(ValueError, match="vLLM computes other probabilities than the student"):
        trained(settings(lmbda=0.01), mixture(), teacher=small(1))


def test_a_model_that_vllm_cannot_run_is_refused(settings: Callable[..., DistillationConfig]) -> None:
    with pytest.raises(ValueError, match="vLLM cannot sample from this student .*head_dim"):
        trained(settings(lmbda=0.01), llama(0), teacher=small(1))
    assert not torch.distributed.is_initialized()


def test_a_command_and_its_control(tmp_path: Path) -> None:
    given = stored.workplace(tmp_path, 24)
    small(0).save_pretrained(tmp_path / "student")
    fields = {"lmbda": 1.0, "sampler": "vllm", "sampler_kwargs": ENGINE, "sampling_steps": 3, "max_steps": 7}
    more = {"logging_steps": 1, "save_steps": 2, "eval_answers": 0, "control": True}
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps({**given, **fields, **more}))
    assert main(["distill", str(config), "--output-dir", str(tmp_path / "whole")]) == 0
    report = json.loads((tmp_path / "whole" / "report.json").read_text())
    history = [entry for entry in report["student"]["history"] if "loss" in entry]
    assert [entry["sampling_seconds"] > 0 for entry in history] == [step % 3 == 0 for step in range(7)]
    assert report["control"]["steps"] == 7
    assert (tmp_path / "whole" / "checkpoint-4" / "own_samples_0.json").is_file()


def test_two_processes_have_an_engine_each(tmp_path: Path) -> None:
    """DDP: the run is that of `generate`, and a second run in the same processes uses the engines again."""
    path = os.pathsep.join(filter(None, (str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         str(ROOT / "tests/support/engine_processes.py"), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    runs = [[torch.load(tmp_path / f"{name}-{i}.pt") for i in range(2)] for name in ("plain", "one", "two")]
    for name, value in runs[0][0].items():
        assert all(torch.equal(value, run[i][name]) for run in runs for i in range(2)), name
