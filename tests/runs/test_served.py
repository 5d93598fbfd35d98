"""Test the commands with a teacher behind a URL: distill, cache, evaluate, doctor and estimate."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import stored
from support.served import Stub, serving
from support.served_runs import generated
from support.stored import settings
from support.tiny import llama

pytest.importorskip("httpx")

from fastkd.cli import main
from fastkd.corpora.store import CacheReader
from fastkd.runs.doctor import examine
from fastkd.runs.estimate import estimate
from fastkd.runs.train import waiting

TOP_K = 6


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serving(Stub(llama(1, hidden=24), stored.tokenizer())) as found:
        yield found


@pytest.fixture
def config(tmp_path: Path, stub: Stub) -> Path:
    given = stored.workplace(tmp_path, 40)
    stub.model.save_pretrained(tmp_path / "teacher")
    fields = {"teacher": stub.url, "teacher_top_k": TOP_K, "eval_file": given["train_file"], "max_steps": 6}
    more = {"learning_rate": 0.01, "save_strategy": "no", "cache_top_k": TOP_K, "eval_answers": 2}
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps({**given, **fields, **more}))
    return path


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def losses(folder: Path) -> list[float]:
    return [one["loss"] for one in report(folder)["student"]["history"] if "loss" in one]


def test_a_cache_of_a_server_is_that_of_its_model(config: Path, stub: Stub, tmp_path: Path) -> None:
    """The cache and the run from it are those of the same teacher on this machine."""
    said = ["cache", str(config), "--output-dir"]
    assert main([*said, str(tmp_path / "served"), "--teacher-requests", "3"]) == 0
    assert main([*said, str(tmp_path / "live"), "--teacher", str(tmp_path / "teacher")]) == 0
    served, live = (CacheReader(tmp_path / name / "train") for name in ("served", "live"))
    assert len(served) == len(live) == 40
    served.verify()
    live.verify()
    for row in range(len(live)):
        ours, theirs = served.entries(row), live.entries(row)
        assert ours.columns().tolist() == theirs.columns().tolist()
        torch.testing.assert_close(torch.from_numpy(ours.values), torch.from_numpy(theirs.values))
    # Everything is there: the teacher is not asked again, except for the probe.
    before = len(stub.prompts)
    assert main([*said, str(tmp_path / "served")]) == 0
    assert len(stub.prompts) - before == 2
    distill = ["distill", str(config), "--logging-steps", "1", "--output-dir"]
    assert main([*distill, str(tmp_path / "cached"), "--teacher", f"cache:{tmp_path / 'served'}"]) == 0
    assert main([*distill, str(tmp_path / "asked")]) == 0
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "asked"), abs=2e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kind", "sampled"], "make a topk cache"),
        (["--cache-top-k", "30"], "set a smaller teacher_top_k (for fastkd cache: cache_top_k)"),
    ],
)
def test_caches_that_no_server_can_fill(
    config: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", str(config), "--output-dir", str(tmp_path / "served"), *options]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [["--num-beams", "1"], ["--num-beams", "3"], ["--mode", "interpolate"]],
    ids=["greedy", "beam", "near"],
)
def test_answers_of_a_server_are_those_of_its_model(config: Path, tmp_path: Path, options: list[str]) -> None:
    said = ["generate", str(config), *options, "--output-dir"]
    assert main([*said, str(tmp_path / "served")]) == 0
    assert main([*said, str(tmp_path / "live"), "--teacher", str(tmp_path / "teacher")]) == 0
    served, live = (generated(tmp_path / name) for name in ("served", "live"))
    assert len(served) == 40 and served == live
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("served", "live")]
    assert manifests[0]["tokens"] == manifests[1]["tokens"]
    assert [manifests[0]["notes"][name] for name in ("cut", "empty")] == [
        manifests[1]["notes"][name] for name in ("cut", "empty")
    ]


def test_answers_of_sglang(
    config: Path, stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.is_sglang = True
    said = ["generate", str(config), "--output-dir"]
    assert main([*said, str(tmp_path / "beams")]) == 1
    assert "a server of SGLang has no beam search" in capsys.readouterr().err
    greedy = ["--num-beams", "1"]
    assert main([*said, str(tmp_path / "served"), *greedy]) == 0
    assert main([*said, str(tmp_path / "live"), *greedy, "--teacher", str(tmp_path / "teacher")]) == 0
    served, live = (generated(tmp_path / name) for name in ("served", "live"))
    assert len(served) == 40 and served == live


def test_samples_of_a_server(config: Path, stub: Stub, tmp_path: Path) -> None:
    """They have their own seeds, so that a set that is made again is the same."""
    said = ["generate", str(config), "--mode", "sample", "--output-dir"]
    made = []
    for name in ("one", "two"):
        # Torch's generator is that of all threads, so the stub must draw one answer at a time.
        assert main([*said, str(tmp_path / name), "--teacher-requests", "1"]) == 0
        made.append([row["completion"] for row in generated(tmp_path / name)])
    assert made[0] == made[1] and len(set(made[0])) > 20
    stub.tokenizer = stored.tokenizer(letters=stored.LETTERS[::-1])
    assert main([*said, str(tmp_path / "other")]) == 1


def test_a_student_is_compared_with_its_server(config: Path, tmp_path: Path) -> None:
    options = ["--model", str(tmp_path / "student"), "--output-dir", str(tmp_path / "scores")]
    assert main(["evaluate", str(config), *options]) == 0
    found = json.loads((tmp_path / "scores" / "evaluate.json").read_text())
    assert found["student"]["eval"]["kd"] > 0 and found["teacher"]["eval"]


def test_the_doctor_asks_the_server(config: Path, stub: Stub) -> None:
    args = json.loads(config.read_text())
    found = {one.name: one for one in examine(settings(**args))}
    assert found["served"].severity == "note" and "6 log-probabilities" in found["served"].found
    stub.max_logprobs = 3
    found = {one.name: one for one in examine(settings(**args))}
    assert found["served"].severity == "error" and "--max-logprobs 6" in found["served"].found
    assert "served" not in {one.name for one in examine(settings(**args), fast=True)}


def test_a_served_teacher_takes_no_memory(config: Path, tmp_path: Path) -> None:
    args = json.loads(config.read_text())
    served = estimate(settings(**args), timed=False)
    live = estimate(settings(**{**args, "teacher": str(tmp_path / "teacher")}), timed=False)
    assert 0 < served.step.peak < live.step.peak and not served.caches
    assert served.step.flops > 0  # the step ran, and not only the weights were counted


def test_a_waiting_student_is_mentioned() -> None:
    part = {"steps": 100, "seconds_per_step": 1.0}
    assert waiting(part) == waiting({**part, "waited_seconds": 9.0}) == []
    assert "waited 40 seconds" in waiting({**part, "waited_seconds": 40.0})[0]


@pytest.mark.slow
def test_a_killed_run_goes_on(config: Path, stub: Stub, tmp_path: Path) -> None:
    """Killed in the middle, and resumed while the server is away for a while: the same losses."""
    options = [
        "distill",
        str(config),
        "--logging-steps",
        "1",
        "--save-strategy",
        "steps",
        "--save-steps",
        "2",
    ]
    assert main([*options, "--output-dir", str(tmp_path / "whole")]) == 0
    folder = tmp_path / "killed"
    command = [*options, "--output-dir", str(folder)]
    stub.delay = 0.3
    process = subprocess.Popen([sys.executable, "-m", "fastkd.cli", *command])
    try:
        deadline = time.monotonic() + 120
        while not list(folder.glob("checkpoint-*/trainer_state.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (folder / "model.safetensors").exists()  # it was killed in the middle
    stub.delay, stub.fails = 0.0, 10
    assert main([*command, "--resume-from-checkpoint", "true"]) == 0
    assert losses(folder) == pytest.approx(losses(tmp_path / "whole"), abs=1e-6)
