"""Test ``make test-matrix``: what it tests, what it keeps, and its messages where something is missing."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import matrix
import pytest

ROOT = Path(__file__).resolve().parents[2]


def default_entries() -> list[str]:
    (line,) = re.findall(r"^MATRIX \?= (.+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    return str(line).split()


def test_the_oldest_python_and_torch_are_those_of_pyproject() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    (python,) = re.findall(r'requires-python = ">=([\d.]+)"', text)
    (torch,) = re.findall(r'"torch>=([\d.]+)"', text)
    assert default_entries() == [f"python{python}:torch=={torch}.0", "torch"]


def test_the_tests_that_are_left_out_exist() -> None:
    chosen = set(matrix.quick_tests())
    assert all((ROOT / "tests" / path).exists() for path in matrix.APART)
    assert not any(path.startswith(f"tests/{apart}") for path in chosen for apart in matrix.APART)
    assert {"tests/ops/test_autograd.py", "tests/losses/test_parity.py", "tests/docs/test_docs.py"} <= chosen


def test_each_entry_has_a_folder_of_its_own(tmp_path: Path) -> None:
    name = Path(sys.executable).name
    found = [
        matrix.parse(text, tmp_path).folder.name for text in ("torch", "torch==2.8.0", f"{name}:torch==2.8.0")
    ]
    assert found == ["torch", "torch-2.8.0", f"{name}-torch-2.8.0"]
    assert matrix.parse("torch", tmp_path).python == Path(sys.executable)


class Steps:
    """A stand-in for the slow commands: records them, and makes those fail that contain ``failing``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failing: str = "nothing fails") -> None:
        self.ran: list[str] = []
        self.failing = failing
        monkeypatch.setattr(matrix, "execute", self._execute)
        monkeypatch.setattr(matrix, "test", lambda entry, arguments: f"tests {' '.join(arguments)}")

    def _execute(self, *arguments: str) -> int:
        self.ran.append(" ".join(arguments))
        return int(self.failing in self.ran[-1])

    def count(self, what: str) -> int:
        return sum(what in command for command in self.ran)


def test_a_complete_environment_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = Steps(monkeypatch)
    for _ in range(2):
        assert matrix.main(["torch==2.6.0", "--folder", str(tmp_path), "--pytest", "-k", "jsd"]) == 0
    assert steps.count("-m venv") == steps.count("torch==2.6.0 ") == 1 and steps.count("--editable .") == 2
    assert capsys.readouterr().out.count("torch==2.6.0: passed with tests -k jsd") == 4


def test_an_interrupted_environment_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch, failing="install --quiet")
    for _ in range(2):
        assert matrix.main(["torch==2.6.0", "--folder", str(tmp_path)]) == 1
    assert steps.count("-m venv --clear") == steps.count("install --quiet") == 2


def test_an_environment_is_removed_once_its_tests_have_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Steps(monkeypatch, failing="pip --disable-pip-version-check check")
    assert matrix.main(["torch==2.6.0", "--remove", "--folder", str(tmp_path)]) == 1
    assert (tmp_path / "torch-2.6.0").exists()
    Steps(monkeypatch)
    assert matrix.main(["torch==2.6.0", "--remove", "--folder", str(tmp_path)]) == 0
    assert not (tmp_path / "torch-2.6.0").exists()


@pytest.mark.parametrize(
    ("failing", "said"),
    [
        ("torch==2.6.0", "could not install torch==2.6.0"),
        ("--editable", "could not build fastkd"),
        ("version-check check", "not what the packages in it require"),
    ],
)
def test_a_failed_case_is_reported_and_the_others_continue(
    failing: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Steps(monkeypatch, failing)
    entries = ["python0.0:torch", "torch==2.6.0", "torch"]
    assert matrix.main([*entries, "--folder", str(tmp_path)]) == 1
    summary = capsys.readouterr().out.split("The matrix:")[1].strip().splitlines()
    assert "there is no python0.0" in summary[0] and said in summary[1]
    assert ("passed" in summary[2]) == (failing == "torch==2.6.0")


def test_a_full_disk_is_noticed_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = Steps(monkeypatch)
    monkeypatch.setattr(matrix, "ROOM", 2**70)
    assert matrix.main(["torch", "--folder", str(tmp_path)]) == 1
    assert "of disk are free" in capsys.readouterr().out and not steps.ran


@pytest.mark.parametrize(("status", "passes"), [(0, True), (1, False), (2, False), (5, False)])
def test_the_exit_status_of_pytest_decides(
    status: int, passes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Found:
        returncode, stdout = 0, json.dumps(["versions", "no Triton here"])

    monkeypatch.setattr(matrix.subprocess, "run", lambda *_, **__: Found())
    monkeypatch.setattr(matrix, "execute", lambda *_: status)
    entry = matrix.Entry("torch", Path(sys.executable), tmp_path)
    if passes:
        assert matrix.test(entry, []) == "versions"
    else:
        with pytest.raises(matrix.Failure, match="tests failed with versions"):
            matrix.test(entry, [])
