"""Test the comparison of a CPU's instruction sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastkd.backends import native
from fastkd.bench import instruction_sets

ROWS = [
    ("forward_kl", "float32", {"avx512": 1.0, "avx2": 1.5, "baseline": 3.0}, 0.5),
    ("jsd", "bfloat16", {"avx512": 1.2, "avx2": 1.0, "baseline": 3.0}, 0.4),
]


@pytest.fixture
def three_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instruction_sets, "cpu_isas", lambda: ["avx512", "avx2", "baseline"])


@pytest.mark.usefixtures("three_sets")
def test_the_table_and_the_verdict() -> None:
    text = instruction_sets.table(ROWS)
    assert "| divergence | dtype | avx512 | avx2 | baseline | avx512 / avx2 | avx512 / baseline |" in text
    assert "| forward_kl | float32 | 0.50 | 0.33 | 0.17 | 0.67 | 0.33 |" in text
    said = instruction_sets.verdict(ROWS)
    assert "slower one for jsd in bfloat16 (1.20 times avx2's time)" in said and "forward_kl" not in said
    assert "FASTKD_CPU_ISA=avx2" in said
    assert "nowhere the slower one" in instruction_sets.verdict(ROWS[:1])


def test_a_cpu_with_one_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instruction_sets, "cpu_isas", lambda: ["baseline"])
    assert instruction_sets.verdict([]) == "baseline is the only instruction set here."


def test_every_set_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--quick", "--vocab", "3000", "--tokens", "4", "--rounds", "2", "--save", str(tmp_path)]
    assert instruction_sets.main(sizes) == 0
    printed = capsys.readouterr().out
    (path,) = tmp_path.glob("instruction-sets-*.md")
    assert path.read_text().strip() in printed
    for isa in native.cpu_isas():
        assert f" {isa} |" in printed
    assert printed.count("| float32 |") == printed.count("| bfloat16 |") == len(instruction_sets.QUICK)
