"""Test the measurements of the gradient under temperature and accumulation, on untrained models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("transformers")

from support import doctor
from support.tiny import llama

from bench.tasks.gradients import main, section


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("student", "teacher")):
        llama(seed).save_pretrained(name)
        doctor.tokenizer().save_pretrained(name)
    passages = [" ".join(f"w{(i + j) % 40}" for j in range(2 + i % 19)) for i in range(70)]
    Path("text.txt").write_text("\n\n".join(passages))
    return ["--student", "student", "--teacher", "teacher", "--text", "text.txt", "--records", "records"]


def test_temperature_and_accumulation(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    found = json.loads(Path("records/gradients.json").read_text())
    assert found["batches"] == 2
    for one in found["temperature"]:
        assert one["without"] == pytest.approx(one["with"] / one["temperature"] ** 2, rel=1e-4)
    whole, *cut = found["accumulation"]
    assert whole == {"pieces": 1, "means": pytest.approx(0.0, abs=1e-5), "fastkd": 0.0}
    for one in cut:
        assert one["fastkd"] < 1e-5 < 0.01 < one["means"]
    # The smaller the micro-batches, the more their numbers of tokens differ.
    assert cut[-1]["means"] > cut[0]["means"]
    assert "\n".join(section(found)) in capsys.readouterr().out


def test_too_short_a_text_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.txt").write_text("w1 w2\n\nw3 w4")
    with pytest.raises(SystemExit):
        main(arguments)
    assert "text.txt has fewer than 32 passages between blank lines" in capsys.readouterr().err
