"""Test that a run loses nothing: what its ``output_dir`` may hold, and what it must hold to be resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from support import stored
from support.tiny import llama

from fastkd.directories import LOCK
from fastkd.runs import disk_space
from fastkd.runs.cache import make_caches
from fastkd.runs.generate import generate
from fastkd.runs.output_directory import open_record, refuse_inputs, refuse_other_commands
from fastkd.runs.train import run
from fastkd.trainer import DistillationConfig, checkpoints

Run = Callable[..., Any]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a student, a teacher and data."""
    stored.workplace(tmp_path, 8)
    return tmp_path


def settings(place: Path, **fields: Any) -> DistillationConfig:
    fixed: dict[str, Any] = {
        "model": str(place / "student"),
        "teacher": str(place / "teacher"),
        "train_file": str(place / "data.jsonl"),
        "output_dir": str(place / "out"),
        "max_length": 24,
        "max_completion_length": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
    }
    return stored.settings(**{**fixed, **fields})


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in load_file(folder / "model.safetensors").values()])


def hashes(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in stored.files(folder).items() if name != LOCK}


def test_an_input_is_no_output_dir(place: Path) -> None:
    """Whatever the field and the way in which the directory is written."""
    (place / "link").symlink_to(place / "teacher")
    for folder in ("answers", "cache/train"):
        (place / folder).mkdir(parents=True)
    before = hashes(place)
    for fields in (
        {"output_dir": str(place / "teacher")},
        {"output_dir": str(place / "student")},
        {"output_dir": str(place / "link")},
        {"output_dir": str(place / "student" / ".." / "teacher")},
        {"teacher": f"cache:{place}/cache", "output_dir": str(place / "cache")},
        {"teacher": f"cache:{place}/cache", "output_dir": str(place / "cache" / "train")},
        {"train_file": str(place / "answers"), "output_dir": str(place / "answers")},
        {"eval_file": str(place / "answers"), "output_dir": str(place / "answers")},
        {"model": str(place / "new"), "output_dir": str(place / "new")},  # the name would mean the result
    ):
        with pytest.raises(ValueError, match="which the run would overwrite: give another output_dir"):
            run(settings(place, **fields), "distill")
    for command, fields in ((generate, {}), (make_caches, {})):
        with pytest.raises(ValueError, match="which the run would overwrite"):
            command(settings(place, **fields, output_dir=str(place / "teacher")))
    assert hashes(place) == before


def test_an_input_among_the_checkpoints(place: Path) -> None:
    """A run deletes old checkpoints and replaces its control."""
    for part in ("checkpoint-4", "control"):
        inside = str(place / "out" / part)
        with pytest.raises(ValueError, match="the run may replace or delete it"):
            refuse_inputs(settings(place, teacher=inside))
        refuse_inputs(settings(place, teacher=inside), checkpoints_too=False)
    refuse_inputs(settings(place, teacher=str(place / "out" / "teacher")))
    refuse_inputs(settings(place, output_dir=str(place / "teacher" / "student")))


def test_files_that_no_run_wrote_are_kept(place: Path) -> None:
    (place / "out").mkdir()
    for name in ("config.yaml", "README.md", "model.safetensors", "report.json"):
        (place / "out" / name).write_text("mine")
        for choice in (None, "false", "true"):
            with pytest.raises(ValueError, match=f"holds {name}, which no run of fastkd"):
                run(settings(place, resume_from_checkpoint=choice), "distill")
        assert (place / "out" / name).read_text() == "mine"
        (place / "out" / name).unlink()
    (place / "out" / "distill.yaml").write_text("mine")
    open_record(settings(place))


def test_a_result_is_not_replaced_by_that_of_another_run(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(settings(place), "distill")
    first = hashes(place / "out")
    for choice in (None, "true"):  # there is no checkpoint from which `true` could go on
        with pytest.raises(ValueError, match=r"result of a run with other settings \(temperature "):
            run(settings(place, temperature=3.0, resume_from_checkpoint=choice), "distill")
    assert hashes(place / "out") == first
    run(settings(place), "distill")  # the same run gives the same result
    assert hashes(place / "out")["model.safetensors"] == first["model.safetensors"]
    run(settings(place, temperature=3.0, resume_from_checkpoint="false"), "distill")
    assert hashes(place / "out")["model.safetensors"] != first["model.safetensors"]


def test_the_demo_replaces_only_a_demo(place: Path) -> None:
    (place / "out").mkdir()
    refuse_other_commands(place / "out", "demo")
    (place / "out" / "report.json").write_text('{"command": "demo"}')
    refuse_other_commands(place / "out", "demo")
    for report in ('{"command": "distill"}', "mine", "[]"):
        (place / "out" / "report.json").write_text(report)
        with pytest.raises(ValueError):
            refuse_other_commands(place / "out", "demo")


def exchange_data(place: Path) -> None:
    (place / "data.jsonl").write_text(
        "".join(json.dumps({"prompt": "b", "completion": " a", "tag": ""}) + "\n" for _ in range(8))
    )


def exchange_teacher(place: Path) -> None:
    llama(7, hidden=24).save_pretrained(place / "teacher")


def exchange_tokenizer(place: Path) -> None:
    tokenizer = stored.tokenizer()
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(place / "student")


@pytest.mark.parametrize(
    ("exchange", "what"),
    [
        (exchange_data, "the data of train_file"),
        (exchange_teacher, "the teacher"),
        (exchange_tokenizer, "the tokenizer"),
    ],
)
def test_contents_exchanged_under_the_same_name(
    place: Path, exchange: Callable[[Path], None], what: str, caplog: pytest.LogCaptureFixture
) -> None:
    steps = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    run(settings(place, **steps), "distill")
    shutil.rmtree(place / "out" / "checkpoint-2")
    run(settings(place, **steps), "distill")  # nothing was exchanged
    assert "resuming from" in caplog.text
    shutil.rmtree(place / "out" / "checkpoint-2")
    exchange(place)
    record = (place / "out" / "run.json").read_bytes()
    with pytest.raises(ValueError, match=f"a run before {what} changed under the same name"):
        run(settings(place, **steps), "distill")
    assert (place / "out" / "run.json").read_bytes() == record
    run(settings(place, **steps, resume_from_checkpoint="true"), "distill")
    assert f"resuming although {what} changed" in caplog.text
    run(settings(place, **steps), "distill")  # the record is now that of the new contents


def test_a_result_of_other_contents_without_checkpoints(place: Path) -> None:
    run(settings(place), "distill")
    exchange_data(place)
    with pytest.raises(ValueError, match="holds the result of a run before the data of train_file changed"):
        run(settings(place), "distill")


def test_a_base_exchanged_under_its_adapter(place: Path) -> None:
    """A checkpoint of an adapter does not hold the model under it."""
    pytest.importorskip("peft")
    fields = {"peft_config": {"r": 2, "target_modules": ["q_proj"]}, "max_steps": 1}
    run(settings(place, **fields, save_strategy="steps", save_steps=1), "distill")
    llama(7).save_pretrained(place / "student")
    with pytest.raises(ValueError, match="before the model under the adapter changed"):
        run(settings(place, **fields, save_strategy="steps", save_steps=1), "distill")


def test_a_named_checkpoint_is_verified(place: Path) -> None:
    steps = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    run(settings(place, **steps), "distill")
    named = place / "out" / "checkpoint-1"
    run(settings(place, **steps, resume_from_checkpoint=str(named)), "distill")
    (named / "optimizer.pt").write_bytes(b"cut")
    for folder, message in (
        (named, "are missing or have changed since it was written"),
        (place / "student", "has no sealed.json"),
        (place / "nowhere", "there is no checkpoint"),
    ):
        with pytest.raises(ValueError, match=message):
            run(settings(place, **steps, resume_from_checkpoint=str(folder)), "distill")


def test_starting_again_forgets_all_checkpoints(place: Path) -> None:
    """The checkpoints of the control count too: the control of a later run would resume from them."""
    old = [place / "out" / "checkpoint-1", place / "out" / "control" / "checkpoint-1"]
    for folder in old:
        folder.mkdir(parents=True)
        checkpoints.seal(folder)
    (place / "out" / "run.json").write_text('{"settings": {"seed": 1}, "contents": {}}')
    record = open_record(settings(place, resume_from_checkpoint="false"))
    assert all(map(checkpoints.is_whole, old))
    record.begin({}, writes=True)
    assert not any(map(checkpoints.is_whole, old))


@pytest.mark.parametrize("command", ["distill", "generate", "cache"])
def test_one_run_in_a_directory(command: str, place: Path) -> None:
    commands: dict[str, Run] = {
        "distill": lambda args: run(args, "distill"), "generate": generate, "cache": make_caches,
    }  # fmt: skip
    (place / "out").mkdir()
    lock = FileLock(place / "out" / LOCK)
    with lock, pytest.raises(ValueError, match="another run is writing into output_dir"):
        commands[command](settings(place))
    assert hashes(place / "out") == {}
    commands[command](settings(place))
    with lock.acquire(timeout=0):  # the run has released it
        pass


def test_no_room_for_the_checkpoints(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_space, "free_disk", lambda _: 50_000)
    with pytest.raises(ValueError, match=r"2 checkpoints need .* of disk space and 48.8 KiB are free"):
        run(settings(place, save_strategy="steps", save_steps=1), "distill")
    assert not any((place / "out").glob("checkpoint-*"))
    run(settings(place), "distill")
    assert len(weights(place / "out")) * 4 < 50_000


def test_a_run_that_diverges_ends_with_an_error(place: Path) -> None:
    fields = {"optim": "sgd", "learning_rate": 1e38, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    with pytest.raises(RuntimeError, match="weights are not finite numbers after step 4: the run diverged"):
        run(settings(place, **fields, eval_file=str(place / "data.jsonl"), max_steps=4), "distill")
    assert not (place / "out" / "model.safetensors").exists()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    report = json.loads((place / "out" / "report.json").read_text(), parse_constant=refuse)
    assert report["student"]["eval"] == {} and "diverged" in report["failed"]["reason"]
    page = (place / "out" / "report.html").read_text()
    assert "Failed: the student" in page and "Trained for" not in page
