"""Test that the examples can be run: their configurations, the options of their commands, and their links."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fastkd.cli.fields_read import COMMANDS, refuse_foreign

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(path.parent for path in (ROOT / "examples").glob("*/run.sh"))
# The functions of steps.sh, and the commands that they call.
STEPS = {"trained": "train", "distilled": "distill", "made": "new"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT / "examples").as_posix()


def steps_of(script: str) -> list[tuple[str, list[str]]]:
    """The calls of fastkd in a run.sh: the command and its arguments."""
    found = []
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if "fastkd" in words:
            words = words[words.index("fastkd") + 1 :]
            found.append((words[0], words[1:]))
        elif words and words[0] in STEPS:
            found.append((STEPS[words[0]], words[2:]))
    return found


def test_every_task_has_an_example() -> None:
    assert {path.name for path in FOLDERS} >= {
        *("text_generation", "translation", "summarisation", "sentiment", "intent"),
    }


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_scripts_use_options_that_their_commands_read(folder: Path) -> None:
    """Configurations that are named are there, and no option is unknown or unread."""
    bash = shutil.which("bash")
    if bash is not None:
        subprocess.run([bash, "-n", str(folder / "run.sh")], check=True)
    steps = steps_of((folder / "run.sh").read_text("utf-8"))
    assert {command for command, _ in steps} >= {"train", "new", "distill"}
    for command, arguments in steps:
        assert all((folder / word).is_file() for word in arguments if word.endswith(".yaml"))
        if command in COMMANDS:
            refuse_foreign(command, arguments)


@pytest.mark.parametrize(
    "path",
    [path for folder in FOLDERS for path in folder.glob("*.yaml") if path.name != "example.yaml"],
    ids=name_of,
)
def test_configurations_can_be_read(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastkd.cli.settings import read_settings

    monkeypatch.chdir(tmp_path)
    args: Any = read_settings([str(path), "--output-dir", "out"])
    assert args.model and args.train_file and args.eval_file
    assert (args.teacher is None) == (path.name in ("teacher.yaml", "language_model.yaml"))


@pytest.mark.parametrize("path", sorted((ROOT / "examples").rglob("README.md")), ids=name_of)
def test_pages_and_their_links(path: Path) -> None:
    text = path.read_text("utf-8")
    for place in re.findall(r"\]\(([^)#]+)", text):
        assert (path.parent / place).exists(), place
    assert not [line for line in text.splitlines() if len(line) > 110 and not line.startswith("|")]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_step_that_was_stopped_is_run_again(tmp_path: Path) -> None:
    """A step counts once its command has ended well, whatever it had written before."""
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin/fastkd"
    fake.write_text(
        '#!/bin/bash\necho "$@" >> calls\nmkdir -p out/few; touch out/few/report.json\n[ ! -e broken ]\n'
    )
    fake.chmod(0o755)
    script = f"""
        . {ROOT}/examples/steps.sh
        trained teacher t.yaml
        distilled few s.yaml --control --seeds "$seeds"
    """

    def run(**environment: str) -> tuple[int, list[str]]:
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env={**os.environ, "PATH": path, **environment}, check=False
        )
        calls = (tmp_path / "calls").read_text().splitlines()
        (tmp_path / "calls").write_text("")
        return done.returncode, calls

    (tmp_path / "broken").touch()
    assert run() == (1, ["train t.yaml --output-dir out/teacher"])
    (tmp_path / "broken").unlink()
    distilled = "distill s.yaml --control --seeds {} --output-dir out/few"
    assert run() == (0, ["train t.yaml --output-dir out/teacher", distilled.format("[42]")])
    assert run() == (0, [])
    assert run(SEEDS="3") == (0, [distilled.format("[42, 43, 44]")])
    assert run(SEEDS="3") == (0, [])
    assert run(ESTIMATE="1") == (0, ["estimate t.yaml --output-dir out/teacher --json",
                                     "estimate s.yaml --output-dir out/few --json"])  # fmt: skip
    assert (tmp_path / "out/estimates/few.json").is_file()
