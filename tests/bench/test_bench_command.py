"""Test the options of ``fastkd bench``, and what it says about wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.benchmark import ONE, bench, read, without

from fastkd.bench import options
from fastkd.cli import main
from fastkd.cli.bench import _parser


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--vocab", "0"], "--vocab must be a whole number from 1, not 0"),
        (["--tokens", "-3"], "--tokens must be a whole number from 1, not -3"),
        (["--vocab", "many"], "invalid int value: 'many'"),
        (["--heads", "12"], "'12' is not STUDENT/TEACHER, such as 1024/2048"),
        (["--op", "kd_los"], "did you mean 'kd_loss'?"),
        (["--dtype", "bfloat"], "did you mean 'bfloat16'?"),
        (["--divergence", "jds"], "did you mean 'jsd'?"),
        (["--peer", "ligger"], "did you mean 'liger'?"),
        (["--backend", "nativ"], "did you mean 'native'?"),
        (["--device", "cud"], "did you mean 'cuda'?"),
        (["--backend", "triton"], "backend 'triton' cannot be measured on cpu"),
        (["--variant", "jds"], "did you mean 'jsd'?"),
        (["--allocator", "kep"], "unknown allocator 'kep': choose from default, kept"),
        (["--elements", "0"], "--elements must be a whole number from 1, not 0"),
        (["--budget", "-1"], "--budget must be seconds, not -1"),
        (["--budget", "nan"], "--budget must be seconds, not nan"),
        (["--vocabulary-size", "8"], "fastkd bench --help lists the options"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--device", "cpu", "--out", str(tmp_path), *arguments]) == 1
    err = capsys.readouterr().err
    assert err.startswith("fastkd bench: ")
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch sees no GPU"):
        options.select("cuda")
    assert options.select().device == "cpu"


def test_a_peer_that_was_asked_for_and_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "trl")
    with pytest.raises(ValueError, match=r"peer 'trl' cannot be measured on cpu: trl is not installed"):
        options.select("cpu", peers=["trl"])


def test_no_peers_at_all(tmp_path: Path) -> None:
    assert bench(tmp_path, *ONE, "--peer") == 0
    assert {e["route"] for e in read(tmp_path)["entries"]} == {"fastkd native"}


def test_help_states_every_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for number in ("128256", "262144", "8192", "16384", "1024/2048"):
        assert number in text
    options = [action for action in _parser()._actions if action.dest != "help"]
    assert len(options) == 18
    assert all("default" in str(action.help) for action in options)
