"""Test the commands as a user types them, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.tiny import llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from fastkd.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]


def fastkd(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "fastkd.cli", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with two models without weights, a tokenizer, some text, and a configuration for each step."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {symbol: i for i, symbol in enumerate(["<|endoftext|>", *alphabet])}
    bpe = Tokenizer(models.BPE(tokens, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    for name, hidden in (("large", 24), ("small", 16)):
        PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>").save_pretrained(
            tmp_path / name
        )
        llama(hidden=hidden, vocab=len(tokens)).config.save_pretrained(tmp_path / name)
    lines = [f"def f{i}(x): return x + {i % 7}" for i in range(80)]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    (tmp_path / "held_out.jsonl").write_text(
        "".join(json.dumps({"body": line}) + "\n" for line in lines[::9])
    )
    common = {
        "model_init": "scratch",
        "train_file": "text.txt",
        "max_length": 32,
        "max_steps": 6,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
        "use_cpu": True,
    }
    teacher = {**common, "model": "large", "output_dir": "teacher"}
    student = {**common, "model": "small", "teacher": "teacher", "output_dir": "student", "control": True}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(teacher))
    (tmp_path / "distill.yaml").write_text(yaml.safe_dump(student))
    return tmp_path


@pytest.mark.slow
def test_train_then_distill(workplace: Path) -> None:
    done = fastkd("train", "train.yaml", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert "wrote the model and teacher/report.json" in done.stdout

    overrides = ["--learning-rate", "1e-2", "--eval_file=held_out.jsonl", "--column_mapping", "{text: body}"]
    (workplace / "text.jsonl").write_text(
        "".join(
            json.dumps({"body": line}) + "\n" for line in (workplace / "text.txt").read_text().split("\n")
        )
    )
    done = fastkd("distill", "distill.yaml", "--train_file", "text.jsonl", *overrides, cwd=workplace)
    assert done.returncode == 0, done.stderr
    report = json.loads((workplace / "student" / "report.json").read_text())
    assert report["settings"]["learning_rate"] == 1e-2
    for name in ("student", "control"):
        assert report[name]["steps"] == 6 and report[name]["fused_head"]
        assert report[name]["eval"]["perplexity"] > 1
        assert report[name]["seconds_per_step"] > 0 and report[name]["peak_memory_mb"] > 0
    assert report["student"]["parameters"] == report["control"]["parameters"]
    assert report["student"]["eval"]["perplexity"] != report["control"]["eval"]["perplexity"]
    for name in ("teacher", "student", "control"):
        assert f"\n{name}" in "\n" + done.stdout
    for folder in ("student", "student/control"):
        AutoModelForCausalLM.from_pretrained(workplace / folder)
        AutoTokenizer.from_pretrained(workplace / folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temprature", "2"], "unknown field 'temprature'; did you mean 'temperature'?"),
        (["--train_file", "nope.txt"], "train_file: there is no file 'nope.txt'"),
        (["--learning_rate", "fast"], "learning_rate must be float, not 'fast'"),
        (["--max_steps", "1.5"], "max_steps must be int, not 1.5"),
        (["--use_cpu", "maybe"], "use_cpu must be bool, not 'maybe'"),
        (["--teacher", "null"], "teacher is not set: give a directory or a hub id"),
        (["--model", "./nowhere"], "model './nowhere' could not be loaded"),
        (["--task", "translation"], "task must be causal_lm or seq2seq or classification, not 'translation'"),
        (["other.yaml"], "give one configuration file, not 2"),
    ],
)
def test_errors_are_one_clear_sentence(
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(workplace)
    (workplace / "teacher").mkdir()
    assert main(["distill", "distill.yaml", *arguments]) == 1
    printed = capsys.readouterr().err.strip().split("\n")[-1]
    assert printed.startswith("fastkd distill: ") and message in printed
    assert "Traceback" not in printed


def test_configuration_file_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.yaml").write_text("- 1\n")
    Path("broken.yaml").write_text("a: [1\n")
    Path("unknown.yaml").write_text("learnign_rate: 1\n")
    for name, message in (
        ("none.yaml", "there is no configuration file 'none.yaml'"),
        ("list.yaml", "must contain `field: value` lines, not a list"),
        ("broken.yaml", "is not valid YAML"),
        ("unknown.yaml", "did you mean 'learning_rate'?"),
    ):
        assert main(["distill", name]) == 1
        captured = capsys.readouterr().err
        assert message in captured and captured.count("\n") == 1


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = fastkd("distill", "none.yaml", "--debug", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("command", "remedy"),
    [("distill", "goes on from its last checkpoint"), ("cache", "goes on from its last shard")],
)
def test_an_interrupted_command_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, remedy: str
) -> None:
    def interrupted(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"fastkd.cli.{command}.main", interrupted)
    assert main([command, "run.yaml"]) == 130
    printed = capsys.readouterr().err
    assert f"fastkd {command}: interrupted" in printed and remedy in printed


def test_help_does_not_wait_for_torch(tmp_path: Path) -> None:
    code = "import sys; from fastkd.cli import main; main(['--help']); print('torch' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert all(name in found.stdout for name in COMMANDS)


def test_help_of_a_command_shows_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "--help"]) == 0
    shown = capsys.readouterr().out
    for line in (
        "kd_ratio (0.5)",
        "temperature (1.0)",
        "fused_head (auto)",
        "control (false)",
        "learning_rate (5e-05)",
    ):
        assert line in shown


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dstill"]) == 2
    assert "did you mean 'distill'?" in capsys.readouterr().err


@pytest.mark.slow
def test_quick_demo(tmp_path: Path) -> None:
    """The demo at toy size runs every stage and writes every file."""
    done = fastkd("demo", "--quick", "--output-dir", "here", "--seed", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for stage in range(1, 8):
        assert f"[{stage}/7]" in done.stdout
    assert done.stdout.strip().split("\n")[-1].endswith("here/report.json and the models beside them")
    report = json.loads((tmp_path / "here" / "report.json").read_text())
    assert report["student"]["steps"] == report["control"]["steps"]
    assert (
        report["student"]["parameters"] == report["control"]["parameters"] < report["teacher"]["parameters"]
    )
    shares = report["loss_share"]
    assert abs(shares["fastkd"]["value"] - shares["plain"]["value"]) < 1e-4 * shares["plain"]["value"]
    assert (tmp_path / "here" / "curves.png").read_bytes()[:4] == b"\x89PNG"
    for name in ("teacher", "student", "control"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "here" / name)
