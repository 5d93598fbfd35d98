"""Test heads whose weights are elsewhere, and DeepSpeed where it is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from support.tiny import llama, rows

from fastkd.trainer import DistillationConfig, DistillationTrainer

ROOT = Path(__file__).parents[2]


def empty(model: Any) -> Any:
    """As ZeRO-3 leaves a head that it has sharded."""
    model.lm_head.weight.data = torch.empty(0)
    return model


def test_a_head_without_its_weight_goes_through_the_logits(configuration: Any) -> None:
    data = Dataset.from_list(rows(8))
    trainer = DistillationTrainer(empty(llama(tied=False)), llama(1), configuration(), train_dataset=data)
    assert not trainer.fused
    with pytest.raises(ValueError, match="ZeRO-3 shards it, or it is offloaded"):
        DistillationTrainer(empty(llama(tied=False)), llama(1), configuration(fused_head="true"))


@pytest.mark.parametrize("fused", ["auto", "false"])
def test_a_teacher_with_its_head_on_disk(fused: str, configuration: Any, tmp_path: Path) -> None:
    teacher = llama(1, hidden=24, tied=False)
    teacher.save_pretrained(tmp_path / "teacher")
    offloaded = type(teacher).from_pretrained(
        tmp_path / "teacher",
        device_map={"model": "cpu", "lm_head": "disk"},
        offload_folder=str(tmp_path / "offloaded"),
    )
    assert offloaded.lm_head.weight.is_meta
    losses = []
    for model in (teacher, offloaded):
        args = configuration(max_steps=1, fused_head=fused)
        trainer = DistillationTrainer(llama(), model, args, train_dataset=Dataset.from_list(rows(8)))
        losses.append(trainer.train().training_loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="needs a Python without deepspeed")
def test_a_missing_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pip install deepspeed"):
        DistillationConfig(output_dir=str(tmp_path), deepspeed={"zero_optimization": {"stage": 3}})


@pytest.fixture(scope="module")
def deepspeed_here() -> None:
    pytest.importorskip("deepspeed")


def zero(stage: int, **more: Any) -> dict[str, Any]:
    sizes = ("train_micro_batch_size_per_gpu", "train_batch_size", "gradient_accumulation_steps")
    optimization = {"stage": stage, **more}
    if stage == 3:
        optimization.setdefault("stage3_gather_16bit_weights_on_model_save", True)
    return {
        "zero_optimization": optimization,
        **dict.fromkeys((*sizes, "gradient_clipping"), "auto"),
        "zero_allow_untested_optimizer": True,
    }


def test_a_run_that_could_not_be_saved_is_refused(deepspeed_here: None, tmp_path: Path) -> None:
    settings = zero(3, stage3_gather_16bit_weights_on_model_save=False)
    with pytest.raises(ValueError, match="ZeRO-3 would not save the model"):
        DistillationConfig(output_dir=str(tmp_path), use_cpu=True, deepspeed=settings)


def test_a_run_without_a_launcher_is_refused(deepspeed_here: None, configuration: Any) -> None:
    with pytest.raises(ValueError, match="torchrun"):
        DistillationTrainer(llama(), llama(1), configuration(deepspeed=zero(2)))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_two_processes_equal_one(stage: int, deepspeed_here: None, tmp_path: Path) -> None:
    """ZeRO-2 and ZeRO-3, with student and teacher loaded in shards, train the weights of one process."""
    for name, model in (("student", llama(0)), ("teacher", llama(1, hidden=24))):
        model.save_pretrained(tmp_path / name)
    path = os.pathsep.join(filter(None, (str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "DS_ACCELERATOR": "cpu"}
    script = str(ROOT / "tests/support/zero_processes.py")
    for settings in (None, zero(stage)):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        done = subprocess.run(
            [sys.executable, *(launcher if settings else []), script, str(tmp_path), json.dumps(settings)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=2e-6)
