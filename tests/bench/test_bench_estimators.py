"""Test the measurement of the gradients of sampled tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from bench import estimators


def test_more_draws_come_nearer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(estimators, "DRAWS", (1, 64))
    monkeypatch.setattr(estimators, "REPEATS", 2)
    curves, fixed = estimators.measured()
    assert 90 > curves["k1"][0] > 2 * curves["k1"][1] and curves["k3"][1] > curves["k1"][1]
    angles = [fixed[f"top {k}, the rest in a bucket"] for k in estimators.ENTRIES]
    assert angles == sorted(angles, reverse=True)
    assert estimators.main(["--out", str(tmp_path)]) == 0
    assert (tmp_path / "sampled.png").stat().st_size > 10_000
    assert f"| 64 | {curves['k1'][1]:.1f}° | {curves['k3'][1]:.1f}° |" in capsys.readouterr().out
