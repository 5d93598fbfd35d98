"""Test runs with several seeds: what each is, what is run again, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from support import stored
from support.pages import Page
from support.stored import Crash

from fastkd.cli import main
from fastkd.errors import Diverged
from fastkd.runs import disk_space, report, seeds, train
from fastkd.runs.doctor import examine
from fastkd.runs.seeds import run
from fastkd.trainer import DistillationConfig
from fastkd.trainer.loading import load_student

FIELDS: dict[str, Any] = {
    "max_length": 24, "max_completion_length": 4, "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 8, "learning_rate": 1e-2, "model_init": "scratch", "control": True,
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a student, a teacher and data."""
    stored.workplace(tmp_path, 8)
    return tmp_path


def settings(place: Path, **fields: Any) -> DistillationConfig:
    names = {"model": "student", "teacher": "teacher", "train_file": "data.jsonl", "output_dir": "out"}
    places = {name: str(place / value) for name, value in names.items()}
    return stored.settings(**{**places, "eval_file": places["train_file"], **FIELDS, **fields})


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in load_file(folder / "model.safetensors").values()])


def states(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def saved(folder: Path) -> Any:
    return json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, DistillationConfig]]:
    """A finished run of two seeds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("pair")
    stored.workplace(place, 8)
    run(settings(place, seeds=2), "distill")
    yield place, settings(place, seeds=2)
    torch.set_num_threads(threads)


def test_each_seed_is_a_run_of_its_own(pair: tuple[Path, DistillationConfig]) -> None:
    """The numbers are those of plain runs with these seeds, and the summary is made of them."""
    place, _ = pair
    train.run(settings(place, seed=43, output_dir=str(place / "plain")), "distill")
    for part in ("", "control"):
        assert torch.equal(weights(place / "plain" / part), weights(place / "out" / "seed-43" / part))
        assert not torch.equal(weights(place / "plain" / part), weights(place / "out" / "seed-42" / part))
    alone, whole = saved(place / "plain"), saved(place / "out")
    each = [saved(place / "out" / f"seed-{seed}") for seed in (42, 43)]
    assert each[1]["student"]["eval"]["perplexity"] == alone["student"]["eval"]["perplexity"]
    for name in ("student", "control"):
        for key in ("perplexity", "ce", "kd", "agreement"):
            values = [found[name]["eval"][key] for found in each]
            measured = whole["seeds"]["metrics"][name]["eval"][key]
            assert measured["mean"] == pytest.approx(np.mean(values)) == whole[name]["eval"][key]
            assert measured["spread"] == pytest.approx(np.std(values, ddof=1))
            assert measured["values"] == {"42": values[0], "43": values[1]}
    assert whole["seeds"]["ended"] == [42, 43] and whole["configuration"]["seeds"] == 2
    assert whole["teacher"]["eval"] == each[0]["teacher"]["eval"]
    assert "Over 2 seeds" in Page((place / "out" / "report.html").read_text()).text
    assert "One run cannot tell" in report.verdict(alone)


def test_one_seed_is_a_plain_run(place: Path) -> None:
    found = run(settings(place, seeds=1, control=False), "distill")
    assert "seeds" not in found and (place / "out" / "model.safetensors").exists()


def test_finished_seeds_are_not_run_again(
    pair: tuple[Path, DistillationConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither by the same command nor by one with more seeds."""
    place, args = pair
    before = {seed: states(place / "out" / f"seed-{seed}") for seed in (42, 43)}
    numbers = saved(place / "out")["seeds"]
    run(args, "distill")
    assert "seeds 42 and 43 ended before: not run again" in capsys.readouterr().out
    assert saved(place / "out")["seeds"] == numbers
    found = run(settings(place, seeds="43,44,42"), "distill")
    assert found["seeds"]["ended"] == [43, 44, 42]
    assert {seed: states(place / "out" / f"seed-{seed}") for seed in (42, 43)} == before
    said = capsys.readouterr().out
    assert "seed 44 (2 of 3)" in said and "seed 42 (" not in said
    assert f"seed 44: {place}/out/seed-44, without the teacher {place}/out/seed-44/control" in said


@pytest.mark.parametrize("during", ["student", pytest.param("control", marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_where_it_stopped(
    place: Path, during: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    steps = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "seeds": 2}
    steps["control"] = during == "control"
    run(settings(place, **steps, eval_steps=1, output_dir=str(place / "whole")), "distill")
    args = settings(place, **steps, eval_steps=1)

    def crash(self: Any, arguments: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        if state.global_step == 3 and self.name == during and self.folder.name == "seed-43":
            raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(report.Live, "on_evaluate", crash)
        with pytest.raises(Crash):
            run(args, "distill")
    assert saved(place / "out")["seeds"]["waiting"] == [43]
    assert report.verdict(saved(place / "out")).startswith("Not finished: seed 43 to come.")
    first = states(place / "out" / "seed-42")
    run(args, "distill")
    assert "resuming from" in caplog.text
    assert states(place / "out" / "seed-42") == first
    for part in ("seed-42", "seed-43", *(["seed-43/control"] if during == "control" else [])):
        assert torch.equal(weights(place / "out" / part), weights(place / "whole" / part))
    assert saved(place / "out")["student"]["eval"]["perplexity"] == pytest.approx(
        saved(place / "whole")["student"]["eval"]["perplexity"]
    )


def test_a_seed_that_diverges(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = train.run

    def diverging(args: Any, *rest: Any) -> Any:
        if args.seed == 43:
            raise Diverged("the weights are not finite numbers")
        return real(args, *rest)

    monkeypatch.setattr(train, "run", diverging)
    found = run(settings(place, seeds=3, control=False), "distill")
    assert found["seeds"]["ended"] == [42, 44] and list(found["seeds"]["failed"]) == ["43"]
    assert "Seed 43 failed and does not count." in capsys.readouterr().out
    # The next command tries it again.
    monkeypatch.setattr(train, "run", real)
    assert run(settings(place, seeds=3, control=False), "distill")["seeds"]["ended"] == [42, 43, 44]


def test_all_seeds_diverge(place: Path) -> None:
    fields = {"optim": "sgd", "learning_rate": 1e38, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    args = settings(place, **fields, max_steps=4, seeds=2, control=False, model_init="pretrained")
    with pytest.raises(Diverged, match="seeds 42 and 43 failed: .*not finite"):
        run(args, "distill")
    assert "Failed" in report.verdict(saved(place / "out"))


def test_directories_that_are_refused(pair: tuple[Path, DistillationConfig], tmp_path: Path) -> None:
    """By the run and by the doctor alike, and nothing is written."""
    place, _ = pair
    before = states(place / "out")
    other = tmp_path / "plain"
    train.run(settings(place, output_dir=str(other), control=False), "distill")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.json").write_text("mine")
    for fields, said in (
        ({"seeds": 2, "temperature": 3.0}, "of a run with other settings (temperature (unset, now 3.0))"),
        ({"seeds": 1}, "holds the runs of seeds 42"),
        ({"seeds": [7], "temperature": 3.0}, "of a run with other settings"),
        ({"seeds": 2, "output_dir": str(other)}, "holds a run of one seed"),
        ({"seeds": 2, "output_dir": str(tmp_path / "mine")}, "holds report.json, which no run of fastkd"),
        ({"seeds": 2, "resume_from_checkpoint": "out/checkpoint-2"}, "a checkpoint of one run"),
    ):
        args = settings(place, **fields)
        with pytest.raises(ValueError) as error:
            run(args, "distill")
        assert said in str(error.value)
        assert any(said in one.found for one in examine(args, fast=True) if one.severity == "error"), said
    assert states(place / "out") == before


def test_data_that_changed_since_a_seed_ended(place: Path) -> None:
    run(settings(place, seeds=[1], control=False), "distill")
    rows = (place / "data.jsonl").read_text().splitlines()
    (place / "data.jsonl").write_text("\n".join([*rows[1:], rows[0]]) + "\n")
    with pytest.raises(ValueError, match="before the data of eval_file, the data of train_file changed"):
        run(settings(place, seeds=[2, 1], control=False), "distill")
    assert not (place / "out" / "seed-2").exists()  # refused before the first seed begins


def test_a_student_that_changed_since_a_seed_ended(place: Path) -> None:
    run(settings(place, seeds=[1], control=False, model_init="pretrained"), "distill")
    stored.llama(5).save_pretrained(place / "student")
    with pytest.raises(ValueError, match="before the student changed under the same name"):
        run(settings(place, seeds=[1, 2], control=False, model_init="pretrained"), "distill")


def test_starting_again(place: Path) -> None:
    run(settings(place, seeds=[1], control=False), "distill")
    first = weights(place / "out" / "seed-1")
    again = settings(place, seeds=[1], control=False, temperature=3.0, resume_from_checkpoint="false")
    run(again, "distill")
    assert not torch.equal(weights(place / "out" / "seed-1"), first)


def test_the_directory_is_no_model(
    pair: tuple[Path, DistillationConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever names it as one is told which models it holds."""
    place, _ = pair
    monkeypatch.chdir(place)
    args = settings(Path(), teacher="teacher")
    Path("run.yaml").write_text(yaml.safe_dump({**report.configuration(args), "use_cpu": True, "seed": 42}))
    for command, options in (
        ("evaluate", []),
        ("evaluate", ["--model", "out", "--output-dir", "looked"]),
        ("distill", ["--teacher", "out", "--output-dir", "other"]),
        ("generate", ["--teacher", "out", "--output-dir", "other"]),
    ):
        assert main([command, "run.yaml", *options]) == 1, command
        said = capsys.readouterr().err
        assert "holds the runs of seeds 42" in said and "out/seed-42" in said
    assert main(["evaluate", "run.yaml", "--model", "out/seed-42", "--output-dir", "looked"]) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seeds", "0"], "seeds is 0, and there must be at least 1 run"),
        (["--seeds", "x"], "seeds is 'x': give a number of runs such as 3, or a list of seeds such as 1,2,7"),
        (["--seeds", "1,1"], "seeds holds 1 more than once"),
        (["--seeds=1,2", "--seed", "3"], "seed is 3 and seeds is a list of seeds: leave out one of the two"),
        (["--seeds", "2.5"], "seeds is '2.5'"),
        (["--seeds"], "seeds is 'true'"),
    ],
)
def test_seeds_that_are_refused(
    place: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "run.yaml").write_text("model: student\n")
    assert main(["distill", str(place / "run.yaml"), *options]) == 1
    assert said in capsys.readouterr().err


def test_seeds_as_they_may_be_written() -> None:
    def of(**fields: Any) -> Any:
        return stored.settings(**fields).seeds

    assert of(seeds="3") == of(seeds=3) == 3
    assert of(seeds="1, 2,7") == of(seeds=[1, 2, 7]) == [1, 2, 7]


def test_room_for_all_seeds(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each seed writes a student and a control."""
    args = settings(place, seeds=3)
    size = 4 * sum(p.numel() for p in load_student(args).parameters())
    monkeypatch.setattr(disk_space, "free_disk", lambda _: 6 * size - 1)
    with pytest.raises(ValueError, match="6 runs, each with a model and 0 checkpoints, need"):
        run(args, "distill")
    assert not list(place.glob("out/seed-*"))
    assert "disk" in {one.name for one in examine(args, fast=True) if one.severity == "error"}
    assert disk_space.needed(args, load_student(args), 2).bytes == 6 * size


@pytest.mark.slow
def test_two_processes(place: Path) -> None:
    """Both pass over the seeds that have ended, and train the others together."""
    args = settings(place, control=False)
    text = yaml.safe_dump(report.configuration(args) | {"use_cpu": True, "report_to": "none"})
    (place / "run.yaml").write_text(text)
    root = Path(__file__).parents[2]
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "fastkd.cli"]
    before = None
    for count in ("2", "3"):
        command = [*launcher, "distill", "run.yaml", "--seeds", count]
        done = subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(f"Over {count} seeds") == 1
        now = states(place / "out" / "seed-42")
        assert before in (None, now)
        before = now
    assert saved(place / "out")["seeds"]["ended"] == [42, 43, 44]


def test_classes_and_fresh_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes that the data settles are no setting of the seeds, so each is found again."""
    monkeypatch.chdir(tmp_path)
    for name, seed in (("student", 0), ("teacher", 1)):
        stored.bert(seed).save_pretrained(name)
        stored.tokenizer().save_pretrained(name)
    rows = [{"text": "ab cd"[: 1 + i % 5], "label": i % 5} for i in range(12)]
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = settings(Path(), task="classification", seeds=2)
    found = run(args, "distill")
    assert 0 <= found["student"]["eval"]["accuracy"] <= 1
    assert "Over 2 seeds, the distilled student's accuracy is" in report.verdict(found)
    before = states(Path("out/seed-42"))
    assert run(settings(Path(), task="classification", seeds=2), "distill")["seeds"] == found["seeds"]
    assert states(Path("out/seed-42")) == before


def test_training_without_a_teacher(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "run.yaml").write_text(
        yaml.safe_dump(
            {
                "model": str(place / "student"), "train_file": str(place / "data.jsonl"), "max_steps": 1,
                "eval_file": str(place / "data.jsonl"), "output_dir": str(place / "out"), "max_length": 24,
                "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "seeds": [5, 3],
            }
        )
    )  # fmt: skip
    assert main(["train", str(place / "run.yaml")]) == 0
    assert "Over 2 seeds, the model's " in capsys.readouterr().out
    assert [path.name for path in sorted((place / "out").glob("seed-*"))] == ["seed-3", "seed-5"]
    assert seeds.seed_folder(place / "out", 5).is_dir()
