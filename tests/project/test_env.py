"""``fastkd env`` lists what is available, and the reason for everything that is not."""

from __future__ import annotations

import json

import pytest
import torch

from fastkd.cli import main


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    assert torch.__version__.split("+")[0] in text
    for name in ("native:cpu", "native:cuda", "triton:cuda", "reference:cpu"):
        assert name in text
    if not torch.cuda.is_available():
        assert "none that torch sees" in text


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["cpu"]["instruction set"] in report["cpu"]["available"]
    assert report["backends"]["native:cpu"] == "available"
