"""Test that the peak which ``fastkd estimate`` foretells is within a fifth of a measured one."""

from __future__ import annotations

import gc
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tensor_bytes import bytes_of
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

from fastkd.corpora.tasks import TASKS
from fastkd.runs.estimate import Shape, run_step
from fastkd.trainer import DistillationConfig, DistillationTrainer
from fastkd.trainer.loading import load_student, load_teacher
from fastkd.trainer.teachers.several import each_of

Configuration = Callable[..., DistillationConfig]


def measured_peak(trainer: DistillationTrainer) -> int:
    """Bytes of all tensors at the peak of training, from torch's profile of every allocation on the CPU."""
    modules = [trainer.student, *(getattr(one, "model", None) for one in each_of(trainer._teacher).values())]
    before = bytes_of(t for m in modules if m is not None for t in [*m.parameters(), *m.buffers()])
    gc.collect()  # otherwise the freeing of earlier trainers' tensors would be counted
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        trainer.train()
    events = record.profiler.kineto_results.events()
    live = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    assert peak > 0
    return before + peak


BODY = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
BERT = {"num_labels": 3}
WIDE = {"vocab_size": 3000, "hidden_size": 32}

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "fused head": ("llama", {}, {}),
    "logits": ("llama", {}, {"fused_head": "false"}),
    "a vocabulary that dominates": ("llama", WIDE, {}),
    "its logits": ("llama", WIDE, {"fused_head": "false"}),
    "bfloat16": ("llama", WIDE, {"bf16": True}),
    "gradient checkpointing": ("llama", {"num_hidden_layers": 6}, {"gradient_checkpointing": True}),
    "the same without": ("llama", {"num_hidden_layers": 6}, {}),
    "accumulation": ("llama", WIDE, {"gradient_accumulation_steps": 3}),
    "sgd": ("llama", WIDE, {"optim": "sgd"}),
    "adafactor": ("llama", WIDE, {"optim": "adafactor"}),
    "a teacher in bfloat16": ("llama", WIDE, {"teacher_model_init_kwargs": {"dtype": "bfloat16"}}),
    "eager attention": ("gpt2", {}, {"teacher_model_init_kwargs": {"attn_implementation": "eager"}}),
    "softcap": ("gemma2", {"head_dim": 8}, {}),
    "experts": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, {}),
    "seq2seq": ("t5", T5, {"task": "seq2seq"}),
    "classification": ("bert", BERT, {"task": "classification"}),
    "no teacher": ("llama", WIDE, {"teacher": None, "kd_ratio": 0.0}),
    "features": (
        "llama",
        {},
        {"feature_matches": [{"student": -1, "teacher": -1, "kind": "hidden", "loss": "mse", "weight": 1.0}]},
    ),
}
if find_spec("peft") is not None:
    CASES["adapter"] = ("llama", WIDE, {"peft_config": {"peft_type": "LORA", "r": 4}})
    CASES["its own base"] = ("llama", WIDE, {"peft_config": {"peft_type": "LORA", "r": 4}, "teacher": "base"})


def prepare(folder: Path, kind: str, fields: dict[str, Any]) -> None:
    """Write both models' configurations, and weights for the teacher only. The teacher is wider."""
    for name, factor in (("student", 1), ("teacher", 2)):
        wider = {f: fields[f] * factor for f in ("d_model",) if f in fields}
        width = fields.get("hidden_size", BODY["hidden_size"]) * factor
        config = AutoConfig.for_model(kind, **{**BODY, **fields, **wider, "hidden_size": width})
        config.save_pretrained(folder / name)
    task = {"t5": "seq2seq", "bert": "classification"}.get(kind, "causal_lm")
    TASKS[task].auto_class.from_config(config, dtype=torch.float32).save_pretrained(folder / "teacher")


def rows_of(task: str, shape: Shape) -> list[dict[str, Any]]:
    row: dict[str, Any] = {"input_ids": [1 + i % 7 for i in range(shape.length)]}
    if task == "seq2seq":
        row["labels"] = [1] * shape.target
    elif task == "classification":
        row["labels"] = 1
    return [row] * (shape.rows * 12)


QUICK = {"fused head", "its logits", "gradient checkpointing", "seq2seq", "classification", "adapter"}


@pytest.mark.repeats(2)
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_the_estimate_is_within_a_fifth_of_the_measured_peak(
    name: str, tmp_path: Path, configuration: Configuration
) -> None:
    kind, fields, settings = CASES[name]
    prepare(tmp_path, kind, fields)
    shape = Shape(4, 24, 12 if kind == "t5" else 0)
    common = {
        "model": str(tmp_path / "student"),
        "teacher": str(tmp_path / "teacher"),
        "model_init": "scratch",
        "max_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
    }
    if "peft_config" in settings:  # an adapter needs trained weights under it
        config = AutoConfig.from_pretrained(tmp_path / "student")
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "student")
        common["model_init"] = "pretrained"
    args = configuration(**{**common, **settings})
    found = run_step(args, shape)
    assert found.reason is None

    student = load_student(args)
    teacher = None if args.teacher is None else load_teacher(args, student)
    trainer = DistillationTrainer(student, teacher, args, train_dataset=rows_of(args.task, shape))
    assert found.parameters == sum(p.numel() for p in student.parameters())
    assert found.trained == sum(p.numel() for p in student.parameters() if p.requires_grad)
    assert found.peak == pytest.approx(measured_peak(trainer), rel=0.2)


@pytest.mark.repeats(2)
@pytest.mark.parametrize("names", [("a", "b"), pytest.param(("a", "b", "c"), marks=pytest.mark.slow)])
def test_the_mixture_of_several_teachers_is_counted(
    names: tuple[str, ...], tmp_path: Path, configuration: Configuration
) -> None:
    """A mixture holds the logits of a teacher, their logarithms and the sum, in float32."""
    prepare(tmp_path, "llama", WIDE)
    config = AutoConfig.from_pretrained(tmp_path / "teacher")
    for name in names:
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
    shape = Shape(4, 24)
    args = configuration(
        model=str(tmp_path / "student"),
        model_init="scratch",
        teachers={name: str(tmp_path / name) for name in names},
        teacher_weights=dict.fromkeys(names, 1.0),
        max_steps=2,
        report_to="none",
    )
    found = run_step(args, shape)
    assert found.reason is None
    student = load_student(args)
    trainer = DistillationTrainer(
        student, load_teacher(args, student), args, train_dataset=rows_of(args.task, shape)
    )
    assert found.teacher_parameters == sum(
        p.numel() for one in each_of(trainer._teacher).values() for p in one.model.parameters()
    )
    assert found.peak == pytest.approx(measured_peak(trainer), rel=0.2)
