"""Compile functors that keep the contract of ``csrc/divergences/functor.h`` to the letter, and some that do
not."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
COMPILER = shutil.which("g++") or shutil.which("c++")
FLAGS = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Wno-psabi", f"-I{CSRC}"]

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on PATH")


def compile_functors(*defines: str) -> str:
    """The compiler's messages."""
    flags = [*FLAGS, *(f"-D{name}" for name in defines)]
    command = [str(COMPILER), *flags, str(HERE / "contract" / "functors.cpp")]
    return subprocess.run(command, capture_output=True, text=True, timeout=300).stderr


def test_the_contract_is_enough() -> None:
    assert compile_functors() == ""


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("TEACHER", "a functor needs teacher(entry, row)"),
        ("POWERS", "kStreams needs teacher_power(k) or student_power(k)"),
        ("STREAM", "kStreams needs stream(entry, cross_shift, sums)"),
        ("TERMS", "kCross needs terms(entry, cross_shift)"),
        ("SUMS", "kSums needs sums(entry, sums)"),
        ("LOG", "kLog needs log_of(entry)"),
        ("LABEL", "kSplitsLabel needs label_student(row)"),
    ],
)
def test_the_compiler_names_a_missing_member(missing: str, message: str) -> None:
    found = compile_functors("MISSING", f"MISSING_{missing}")
    errors = [line for line in found.splitlines() if "error:" in line]
    assert errors and all(message in line for line in errors), found
