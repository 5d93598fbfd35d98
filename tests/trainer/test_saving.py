"""Test what a run saves: whether it can is known before the first step, and nothing is changed on the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from filelock import FileLock
from support import stored
from support.tiny import llama, rows
from transformers import GenerationConfig, Trainer

from fastkd.directories import LOCK
from fastkd.trainer import DistillationTrainer, checkpoints

Make = Callable[..., Any]


def trainer(args: Any, student: Any = None, **kwargs: Any) -> DistillationTrainer:
    student = llama() if student is None else student
    fixed: dict[str, Any] = {"teacher": llama(1), "train_dataset": Dataset.from_list(rows(16))}
    return DistillationTrainer(student, args=args, **{**fixed, **kwargs})


def weights(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_tokenizer_that_cannot_be_saved(configuration: Make) -> None:
    class Unsaved(type(stored.tokenizer())):  # type: ignore[misc]
        def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError("its files are gone")

    tokenizer = stored.tokenizer()
    tokenizer.__class__ = Unsaved
    run = trainer(configuration(), processing_class=tokenizer)
    with pytest.raises(ValueError, match="could not be saved at the end of the run: its files are gone"):
        run.train()
    assert run.state.global_step == 0
    assert not list(Path(run.args.output_dir).iterdir())


def test_generation_settings_are_saved_as_they_are(configuration: Make) -> None:
    """`transformers` warns of a temperature without sampling when it is loaded, and refuses to save it."""
    student = llama()
    student.generation_config = GenerationConfig(temperature=0.6, top_p=0.9, do_sample=False)
    run = trainer(configuration(save_strategy="steps", save_steps=2), student)
    run.train()
    run.save_model()
    folder = Path(run.args.output_dir)
    for place in (folder, folder / "checkpoint-2"):
        saved = json.loads((place / "generation_config.json").read_text())
        assert (saved["temperature"], saved["top_p"]) == (0.6, 0.9)
        assert type(student).from_pretrained(place).generation_config.top_p == 0.9
    assert student.generation_config.temperature == 0.6


def test_the_directory_of_the_teacher(configuration: Make, tmp_path: Path) -> None:
    teacher = llama(1)
    teacher.save_pretrained(tmp_path / "teacher")
    teacher = type(teacher).from_pretrained(tmp_path / "teacher")
    run = trainer(configuration(output_dir=str(tmp_path / "teacher")), teacher=teacher)
    with pytest.raises(ValueError, match="is also the directory of the teacher"):
        run.train()


def test_a_hub_that_cannot_be_reached(configuration: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(Trainer, "init_hf_repo", unreachable)
    with pytest.raises(ValueError, match=r"push_to_hub: .* \(Name or service not known\): log in with"):
        trainer(configuration(push_to_hub=True))


def test_another_run_in_the_directory(configuration: Make, tmp_path: Path) -> None:
    args = configuration(save_strategy="steps", save_steps=2)
    Path(args.output_dir).mkdir()
    with FileLock(Path(args.output_dir) / LOCK):
        with pytest.raises(ValueError, match="another run is writing into output_dir"):
            trainer(args).train()
        trainer(configuration()).train()  # saves nothing, so it cannot disturb the other


def test_only_whole_checkpoints_are_resumed(configuration: Make) -> None:
    args = configuration(save_strategy="steps", save_steps=2)
    with pytest.raises(ValueError, match="there is no whole checkpoint in"):
        trainer(args).train(resume_from_checkpoint=True)
    first = trainer(args)
    first.train()
    folder = Path(args.output_dir)
    assert checkpoints.last_whole(folder) == folder / "checkpoint-4"
    (folder / "checkpoint-4" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="are missing or have changed"):
        trainer(args).train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    student = llama()
    trainer(args, student).train(resume_from_checkpoint=True)  # from checkpoint-2
    assert torch.equal(weights(student), weights(first.student))
    checkpoints.unseal(folder / "checkpoint-2")
    with pytest.raises(ValueError, match=r"has no sealed\.json"):
        trainer(args).train(resume_from_checkpoint=str(folder / "checkpoint-2"))


def test_resuming_without_the_optimizer(configuration: Make, caplog: pytest.LogCaptureFixture) -> None:
    """The learning rate goes on where it was; without momentum, so does everything else."""
    for optim, same in (("sgd", True), ("adamw_torch", False)):
        fields = {"optim": optim, "save_only_model": True, "save_strategy": "steps", "save_steps": 2}
        args = configuration(**fields, logging_steps=1)
        first = trainer(args)
        first.train()
        caplog.clear()
        student = llama()
        again = trainer(args, student)
        again.train(resume_from_checkpoint=str(Path(args.output_dir) / "checkpoint-2"))
        assert "holds no optimizer state" in caplog.text
        rates = [
            [entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry]
            for run in (first, again)
        ]
        assert rates[0] == rates[1]
        assert torch.equal(weights(student), weights(first.student)) == same
        shutil.rmtree(args.output_dir)
